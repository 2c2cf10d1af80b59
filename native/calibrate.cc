// Which columns of a norm's result are kept out of its int8 groups.
//
// Trained models have a few channels whose normed value is huge and nearly the same for every token. In a group
// of 32 such a channel sets the scale, and the other 31 are rounded coarsely: on SmolLM2 that one group makes 50
// to 90 % of the rounding error of a layer's input (docs/decisions/0002). Kept in float32, the column costs one
// multiply-add per panel and token. The choice is made once at load from a run over fixed token ids, so it
// depends on the weights alone and E1 holds; it is made in scalar double arithmetic, the same on every machine.
#include <algorithm>
#include <cmath>

#include "pack.h"
#include "program.h"

namespace stoker {
namespace {

// Rounding error of a group is proportional to its largest square. A column is worth keeping out when that
// lowers the row's summed error by at least this share; below it the gain drowns in the other groups.
constexpr double kLeastGain = 0.02;

// Adds up, over the rows of x [rows][width], what leaving each column out would save, and the total error.
// Columns already chosen count as 0.
void add_gains(const float* x, int64_t rows, int64_t width, const std::vector<int32_t>& chosen, std::vector<double>& gain, double* error) {
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t start = 0; start < width; start += 32) {
      double first = 0, second = 0;
      int64_t at = start;
      for (int64_t i = start; i < start + 32; ++i) {
        const double v = std::find(chosen.begin(), chosen.end(), (int32_t)i) == chosen.end() ? std::fabs((double)x[t * width + i]) : 0.0;
        if (v > first) second = first, first = v, at = i;
        else if (v > second) second = v;
      }
      gain[(size_t)at] += first * first - second * second;
      *error += first * first;
    }
}

std::vector<int32_t> choose_outliers(const float* x, int64_t rows, int64_t width, int most) {
  std::vector<int32_t> chosen;
  while ((int)chosen.size() < most) {
    std::vector<double> gain((size_t)width, 0.0);
    double error = 0;
    add_gains(x, rows, width, chosen, gain, &error);
    const auto best = std::max_element(gain.begin(), gain.end());
    if (!(*best > kLeastGain * error)) break;
    chosen.push_back((int32_t)(best - gain.begin()));
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

// The weights of `columns`: [panels][columns][16 rows], rows past the last one 0.
std::vector<float> columns_of(ThreadPool& pool, const PackedMatrix& m, const std::vector<int32_t>& columns) {
  const size_t n = columns.size();
  std::vector<float> out((size_t)(m.panels * kPanelRows) * n, 0.0f);
  if (n == 0) return out;
  pool.run(m.panels, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin * kPanelRows; row < std::min(end * kPanelRows, m.rows); ++row)
      for (size_t i = 0; i < n; ++i)
        out[((size_t)(row / kPanelRows) * n + i) * kPanelRows + (size_t)(row % kPanelRows)] = packed_element(m, row, columns[i]);
  });
  return out;
}

}  // namespace

void Program::calibrate(const BatchView& batch, int most) {
  most_outliers_ = (size_t)most;
  std::vector<float> normed;
  std::vector<std::vector<int32_t>> outliers(quantised_.size());  // per buffer, of the step that wrote it last
  auto written = [&](int buffer, const std::vector<int32_t>& columns) {
    if (buffer >= 0) outliers[(size_t)buffer] = columns;
  };
  run_watched(batch, [&](Step& step, int64_t rows) {
    if (NormStep* norm = std::get_if<NormStep>(&step)) {
      if (norm->out_quantised >= 0 && norm->out < 0) {
        const int64_t width = (int64_t)norm->weight.size();
        normed.resize((size_t)(rows * width));
        kernels_.rms_norm(floats(norm->x), norm->weight.data(), width, norm->eps, normed.data(), 0, rows);
        norm->outliers = choose_outliers(normed.data(), rows, width, most);
      }
      written(norm->out_quantised, norm->outliers);
    } else if (LinearStep* linear = std::get_if<LinearStep>(&step); linear && linear->x_quantised >= 0) {
      const std::vector<int32_t>& columns = outliers[(size_t)linear->x_quantised];
      linear->outliers = (int)columns.size();
      for (LinearPart& part : linear->parts) part.outlier_weights = columns_of(pool_, *part.weight, columns);
    } else if (GatedLinearStep* gated = std::get_if<GatedLinearStep>(&step)) {
      const std::vector<int32_t>& columns = outliers[(size_t)gated->x_quantised];
      gated->outliers = (int)columns.size();
      gated->gate_outlier_weights = columns_of(pool_, *gated->gate, columns);
      gated->up_outlier_weights = columns_of(pool_, *gated->up, columns);
      written(gated->out_quantised, {});
    } else if (const QuantiseStep* quantise = std::get_if<QuantiseStep>(&step)) {
      written(quantise->out, {});
    } else if (const AttentionStep* attention = std::get_if<AttentionStep>(&step)) {
      written(attention->out_quantised, {});
    }
  });
}

}  // namespace stoker
