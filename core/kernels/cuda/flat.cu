// Many tensors as one row of numbers, and back: what an optimiser does then takes a few operations, however many variables
// there are.
//
//   pieces   where each of V tensors is on the device, then where each begins in the row, then the row's length: 2 V + 1
//            numbers of 64 bits
//
// Launch contract of both entry points: block (256), grid (blocks, V), no shared memory; blocks of one tensor share it.
// V <= 65535. float32. Tensors that are aligned to 16 bytes in memory and in the row are quick; others give the same.

#include "device.cuh"

namespace {

struct Piece {
    float* at;
    size begin, count;

    __device__ Piece(const size* pieces) {
        const unsigned piece = blockIdx.y, all = gridDim.y;
        at = reinterpret_cast<float*>(pieces[piece]);
        begin = pieces[all + piece];
        count = pieces[all + piece + 1] - begin;
    }

    /// Copies all of it between two places.
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

/// The tensors one after the other.
ENTRY gather_flat_f32(const size* pieces, float* row) {
    const Piece piece(pieces);
    piece.copy(piece.at, row + piece.begin);
}

/// The row's numbers into the tensors.
ENTRY scatter_flat_f32(const size* pieces, const float* row) {
    const Piece piece(pieces);
    piece.copy(row + piece.begin, piece.at);
}
