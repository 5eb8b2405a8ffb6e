// Conversion of many tensors to one row, and back, so that an optimiser needs only a few operations for any number of
// variables.
//
//   pieces   device addresses of V tensors, then the start of each in the row, then the length of the row: 2 V + 1
//            64-bit numbers
//
// Launch contract of both entry points: block (256), grid (blocks, V), no shared memory; `blocks` blocks copy a tensor.
// V <= 65535. float32. Fast for tensors aligned to 16 bytes in memory and in the row; otherwise results are the same.

#include "device.cuh"

namespace {

/// Address of the tensor of this block, and its begin and length in the row.
struct Piece {
    float* at;
    size begin, count;

    __device__ Piece(const size* pieces) {
        const unsigned piece = blockIdx.y, all = gridDim.y;
        at = reinterpret_cast<float*>(pieces[piece]);
        begin = pieces[all + piece];
        count = pieces[all + piece + 1] - begin;
    }

    /// Copies `count` elements, with all blocks of the tensor.
    __device__ void copy(const float* from, float* to) const {
        const size thread = blockIdx.x * static_cast<size>(blockDim.x) + threadIdx.x;
        const size threads = gridDim.x * static_cast<size>(blockDim.x);
        const size whole = aligned(from) && aligned(to) ? count / 4 : 0;
        for (size i = thread; i < whole; i += threads) {
            float values[4];
            load(from + 4 * i, values);
            store(to + 4 * i, values);
        }
        for (size i = 4 * whole + thread; i < count; i += threads) to[i] = from[i];
    }
};

} // namespace

#define ENTRY extern "C" __global__ void __launch_bounds__(256)

/// Copies the tensors into the row.
ENTRY gather_flat_f32(const size* pieces, float* row) {
    const Piece piece(pieces);
    piece.copy(piece.at, row + piece.begin);
}

/// Copies the row into the tensors.
ENTRY scatter_flat_f32(const size* pieces, const float* row) {
    const Piece piece(pieces);
    piece.copy(row + piece.begin, piece.at);
}
