// What kernels need of the GPU beyond C++. Written before the code that TVM generates; see compiler/gpu/threads.py.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define TVMERGE_DEVICE __device__ __forceinline__

TVMERGE_DEVICE unsigned tvmerge_shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// Copies 16 bytes to shared memory, or fills them with zero where `valid` is 0; both addresses are multiples of 16.
TVMERGE_DEVICE void tvmerge_copy(void* shared, const void* global, int valid) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(tvmerge_shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
#endif
}

// Ends a group of copies.
TVMERGE_DEVICE void tvmerge_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the last N groups of this thread's copies are under way.
template <int N>
TVMERGE_DEVICE void tvmerge_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Loads four 8x8 matrices of 16-bit numbers; lane l has the address of row l % 8 of matrix l / 8, of 16 bytes. It gets
// two neighbours of row l / 4 of each.
TVMERGE_DEVICE void tvmerge_load(unsigned* words, const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(tvmerge_shared_address(shared))
               : "memory");
}

// The same of the transposed matrices.
TVMERGE_DEVICE void tvmerge_load_transposed(unsigned* words, const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(tvmerge_shared_address(shared))
               : "memory");
}

// Adds a product [16, 16] x [16, 8] to sums [16, 8], a warp together. Layouts: PTX ISA, "Matrix Fragments for
// mma.m16n8k16 with floating point type".
TVMERGE_DEVICE void tvmerge_multiply_float16(float* sums, const unsigned* left, const unsigned* right) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
#else
  for (int half = 0; half < 2; ++half)
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[2 * half]), "r"(left[2 * half + 1]), "r"(right[half]));
#endif
}

TVMERGE_DEVICE unsigned tvmerge_pair_float16(float low, float high) {
  __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<unsigned*>(&pair);
}

#if __CUDA_ARCH__ >= 800
TVMERGE_DEVICE void tvmerge_multiply_bfloat16(float* sums, const unsigned* left, const unsigned* right) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}

TVMERGE_DEVICE unsigned tvmerge_pair_bfloat16(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<unsigned*>(&pair);
}
#endif

TVMERGE_DEVICE void tvmerge_store(void* global, unsigned pair) { *static_cast<unsigned*>(global) = pair; }

// The value of the lane whose number differs in the bits of `mask`.
TVMERGE_DEVICE float tvmerge_swap(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// Which lanes have a `condition` other than 0, a bit each.
TVMERGE_DEVICE unsigned tvmerge_vote(int condition) { return __ballot_sync(0xffffffffu, condition); }

// The number of the lowest bit that is set.
TVMERGE_DEVICE int tvmerge_lowest(unsigned bits) { return __ffs(bits) - 1; }
