#include "draft_chain.h"

#include <stdexcept>
#include <string>

namespace stoker {

std::vector<Likeliest> draft_chain(Program& first, Program& own, const BatchView& batch, const ChainTask& task) {
  std::vector<Likeliest> found;
  const float* logits = first.run(batch);
  const float* state = first.hidden();
  float reached = 1;
  for (int64_t pass = 1;; ++pass) {
    Likeliest next;
    own.kernels().likeliest(logits, own.output_width(), next);
    for (int32_t* place : {&next.first, &next.second}) {
      if (*place < 0) continue;
      *place = task.ids[*place];
      if (*place < 0 || *place >= task.vocabulary)
        throw std::invalid_argument("ids has " + std::to_string(*place) + "; allowed: 0 to " + std::to_string(task.vocabulary - 1));
    }
    found.push_back(next);
    reached *= next.share;
    if (next.first < 0 || pass == task.passes || !(reached >= task.least_reached)) return found;
    const int32_t begin[2] = {0, 1}, row = 0, position = batch.kv_tokens[0] + (int32_t)pass - 1, end = position + 1;
    BatchView one{1, 1, batch.table_stride, 1, &next.first, &position, begin, &end, batch.block_tables, &row, 1, &row};
    own.set_input(state, 1, own.hidden_width());
    logits = own.run(one);
    state = own.hidden();
  }
}

}  // namespace stoker
