// From the rows of a GGUF tensor to packed panels (packed.h) and back to float32.
#pragma once
#include <cstdint>

#include "packed.h"

namespace stoker {

// Bytes of one row of `columns` elements as the file stores them.
// Throws std::invalid_argument: unsupported type, columns < 1 or not a multiple of the type's block.
int64_t ggml_row_bytes(int ggml_type, int64_t columns);

// Bytes of a whole tensor as the file stores it: what pack_panels reads. Compare with what is there before
// allocating. Throws as ggml_row_bytes, and when rows or columns are outside 1 .. 2^31 or the size overflows.
int64_t ggml_tensor_bytes(int ggml_type, int64_t rows, int64_t columns);

// Memory and geometry for a [rows, columns] matrix. The bytes are unspecified until pack_panels has
// written every panel, so that the packing threads, not this call, touch the pages first.
// Throws as ggml_tensor_bytes, or std::bad_alloc.
PackedMatrix allocate_packed(int ggml_type, int64_t rows, int64_t columns);

// ok, or the first row (and in it the first column of the block) whose scale or minimum is NaN or infinite.
struct PackResult {
  bool ok = true;
  int64_t row = 0;
  int64_t column = 0;
};

// Packs panels [panel_begin, panel_end) and writes every byte of them, padding included. Disjoint ranges may
// run in parallel. `raw` is the whole tensor, ggml_tensor_bytes() of them, at any alignment.
// Stops after the first panel with a bad scale. Elements of float types are taken as they are.
// Throws std::invalid_argument when ggml_type is not the matrix's, or the range is outside it.
PackResult pack_panels(PackedMatrix& matrix, int ggml_type, const uint8_t* raw, int64_t panel_begin,
                       int64_t panel_end);

// Dequantises rows [row_begin, row_end) to out [row_end - row_begin, columns], row-major.
// Throws std::invalid_argument when the range is outside the matrix.
void unpack_rows(const PackedMatrix& matrix, int64_t row_begin, int64_t row_end, float* out);

// One element, as unpack_rows gives it. For single columns: far slower per element than unpack_rows.
float packed_element(const PackedMatrix& matrix, int64_t row, int64_t column);

}  // namespace stoker
