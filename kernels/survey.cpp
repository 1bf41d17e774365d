#include "survey.hpp"

#include <algorithm>

namespace qcheck {

void survey_row(const Passes& passes, const Image& image, int row, float* out) {
  const std::uint8_t* lines[SURVEY_LINES];
  for (int i = 0; i < SURVEY_LINES; ++i)
    lines[i] = image.data + std::min(row * CELL + survey_line(i), image.height - 1) * image.stride;
  passes.survey(lines, image.width, out + static_cast<std::size_t>(row) * cells_along(image.width) * STATISTICS);
}

}  // namespace qcheck
