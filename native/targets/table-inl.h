// Included by each targets/*.cc inside namespace stoker::STOKER_TARGET, after the target's intrinsics header.
#include "../kernels/lanes-inl.h"
#include "../kernels/math-inl.h"
#include "../kernels/fold-inl.h"
#include "../kernels/quantise-inl.h"
#include "../kernels/norm-inl.h"
#include "../kernels/activation-inl.h"
#include "../kernels/rope-inl.h"
#include "../kernels/hadamard-inl.h"
#include "../kernels/gemm-inl.h"
#include "../kernels/gemm_float-inl.h"
#include "../kernels/attention-inl.h"
#include "../kernels/attention_int8-inl.h"
#include "../kernels/attention_f16-inl.h"
#include "../kernels/sample-inl.h"
#include "../kernels/likeliest-inl.h"
#include "../kernels/limits-inl.h"

inline KernelTable make_table(const char* name) {
  return {name,          rms_norm,    rms_norm_add,     rms_norm_quantise, quantise_rows, linear,
          linear_gated,  gated_activation, add_rows,    scale_rows,        softcap_rows,  rope,
          store_keys,    prepare_queries,  attend,      attend_shared,     attention_finish, sample_row,
          likeliest,     read_bytes,    int8_dots};
}
