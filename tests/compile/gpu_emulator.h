// CUDA kernels on the host, as slowly as can be seen through: a fiber for each thread of a block, switched wherever
// threads wait for each other. It stands in for intrinsics.cuh.
//
// Seen are: what is computed, addresses that are not aligned, copies that are read before they were waited for,
// barriers that not all threads reach, results that depend on the order of threads between barriers (it is reversed).
// Not seen are: the real instructions' own behaviour, races that need two threads at once, time.
#pragma once
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

#include <cmath>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <tvm/ffi/c_api.h>

#undef __launch_bounds__
#define __launch_bounds__(...)
struct Place {
  int x, y, z;
};
static Place threadIdx, blockIdx;
#undef __shared__
#define __shared__ static
using std::max;
using std::min;

namespace emulator {
constexpr int kWarp = 32;
constexpr size_t kStack = 1 << 16;
alignas(1024) static unsigned char shared[232448];

struct Copy {
  void* to;
  const void* from;
};
struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  bool done = false;
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open;
};
struct Warp {  // what its lanes show each other
  const void* address[kWarp];
  unsigned left[kWarp][4], right[kWarp][2];
  float value[kWarp];
  long arrivals = 0;
};

static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static ucontext_t scheduler;
static int current;
static long arrivals;
static int threads[3];  // of a block
static std::function<void()> body;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "block %d %d %d, thread %d: %s\n", blockIdx.x, blockIdx.y, blockIdx.z, current, what);
  std::abort();
}

inline void enter(int fiber) {
  current = fiber;
  threadIdx = {fiber % threads[0], fiber / threads[0] % threads[1], fiber / threads[0] / threads[1]};
}

inline void wait_for(long& arrived, long members) {
  const int me = current;
  const long round = arrived++ / members;
  while (arrived / members == round) {
    swapcontext(&fibers[me].context, &scheduler);
    enter(me);
  }
}

inline Warp& warp() { return warps[current / kWarp]; }
inline int lane() { return current % kWarp; }
inline void wait_for_warp() { wait_for(warp().arrivals, kWarp); }

inline void check_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes) fail("an address is not aligned");
}

inline void run_thread() {
  body();
  Fiber& fiber = fibers[current];
  if (!fiber.open.empty() || !fiber.groups.empty()) fail("copies were started that nobody waits for");
  fiber.done = true;
  swapcontext(&fiber.context, &scheduler);
}

// Runs all threads of a block; those that wait for others that never come are noticed.
inline void run_block() {
  const int count = threads[0] * threads[1] * threads[2];
  fibers = std::vector<Fiber>(count);
  warps = std::vector<Warp>((count + kWarp - 1) / kWarp);
  arrivals = 0;
  std::memset(shared, 0xff, sizeof shared);  // NaN
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    makecontext(&fiber.context, run_thread, 0);
  }
  for (int round = 0, left = count, idle = 0; left; ++round) {
    const int before = left;
    long met = arrivals;
    for (const Warp& w : warps) met += w.arrivals;
    for (int i = 0; i < count; ++i) {
      const int fiber = round % 2 ? i : count - 1 - i;
      if (fibers[fiber].done) continue;
      enter(fiber);
      swapcontext(&scheduler, &fibers[fiber].context);
      left -= fibers[fiber].done;
    }
    for (const Warp& w : warps) met -= w.arrivals;
    idle = met == arrivals && left == before ? idle + 1 : 0;
    if (idle > 2) fail("threads wait for others that never come");
  }
}

// A function in TVM's calling convention: pointers, then the extents that `tags` names.
template <typename Kernel>
int launch(const TVMFFIAny* arguments, int pointers, const char* const* tags, int count, Kernel kernel) {
  int extents[3] = {1, 1, 1};
  threads[0] = threads[1] = threads[2] = 1;
  void* given[32];
  for (int i = 0; i < pointers; ++i) given[i] = arguments[i].v_ptr;
  for (int i = 0; i < count; ++i) {
    const int64_t value = arguments[pointers + i].v_int64;
    if (!std::strncmp(tags[i], "blockIdx.", 9)) extents[tags[i][9] - 'x'] = static_cast<int>(value);
    else if (!std::strncmp(tags[i], "threadIdx.", 10)) threads[tags[i][10] - 'x'] = static_cast<int>(value);
    else if (std::strcmp(tags[i], "tirx.use_dyn_shared_memory")) fail(tags[i]);
    else if (value > static_cast<int64_t>(sizeof shared)) fail("more shared memory than there is");
  }
  body = [&] { kernel(given); };
  for (int z = 0; z < extents[2]; ++z)
    for (int y = 0; y < extents[1]; ++y)
      for (int x = 0; x < extents[0]; ++x) {
        blockIdx = {x, y, z};
        run_block();
      }
  return 0;
}
}  // namespace emulator

inline __half hexp(__half x) { return __float2half(std::exp(__half2float(x))); }
inline void __syncthreads() { emulator::wait_for(emulator::arrivals, static_cast<long>(emulator::fibers.size())); }

inline void tvmerge_copy(void* shared, const void* global, int valid) {
  emulator::check_aligned(shared, 16);
  emulator::check_aligned(global, 16);
  static const unsigned char zeros[16] = {};
  std::memset(shared, 0xff, 16);  // nobody may read it now, nor before the copy was waited for
  emulator::fibers[emulator::current].open.push_back({shared, valid ? global : zeros});
}

inline void tvmerge_commit() {
  emulator::Fiber& fiber = emulator::fibers[emulator::current];
  fiber.groups.push_back(std::exchange(fiber.open, {}));
}

template <int N>
inline void tvmerge_wait() {
  auto& groups = emulator::fibers[emulator::current].groups;
  for (; groups.size() > N; groups.pop_front())
    for (const emulator::Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, 16);
}

namespace emulator {
inline const Warp& show_address(const void* shared) {
  check_aligned(shared, 16);
  warp().address[lane()] = shared;
  wait_for_warp();
  return warp();
}
}  // namespace emulator

inline void tvmerge_load(unsigned* words, const void* shared) {
  const emulator::Warp& warp = emulator::show_address(shared);
  const int lane = emulator::lane();
  for (int i = 0; i < 4; ++i) words[i] = static_cast<const unsigned*>(warp.address[8 * i + lane / 4])[lane % 4];
  emulator::wait_for_warp();
}

inline void tvmerge_load_transposed(unsigned* words, const void* shared) {
  const emulator::Warp& warp = emulator::show_address(shared);
  const int lane = emulator::lane();
  for (int i = 0; i < 4; ++i) {
    words[i] = 0;
    for (int high = 0; high < 2; ++high) {
      const auto* row = static_cast<const uint16_t*>(warp.address[8 * i + lane % 4 * 2 + high]);
      words[i] |= static_cast<unsigned>(row[lane / 4]) << 16 * high;
    }
  }
  emulator::wait_for_warp();
}

namespace emulator {
inline float number(__half_raw raw) { return __half2float(__half(raw)); }
inline float number(__nv_bfloat16_raw raw) { return __bfloat162float(__nv_bfloat16(raw)); }

template <typename Raw>
void multiply(float* sums, const unsigned* left, const unsigned* right) {
  Warp& w = warp();
  std::memcpy(w.left[lane()], left, sizeof w.left[0]);
  std::memcpy(w.right[lane()], right, sizeof w.right[0]);
  wait_for_warp();
  auto half = [](unsigned word, int k) {
    Raw raw;
    raw.x = static_cast<unsigned short>(word >> 16 * (k % 2));
    return number(raw);
  };
  float found[4];
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
    found[i] = sums[i];
    for (int k = 0; k < 16; ++k)
      found[i] += half(w.left[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k) *
                  half(w.right[column * 4 + k % 8 / 2][k / 8], k);
  }
  wait_for_warp();
  std::memcpy(sums, found, sizeof found);
}
}  // namespace emulator

inline void tvmerge_multiply_float16(float* sums, const unsigned* left, const unsigned* right) {
  emulator::multiply<__half_raw>(sums, left, right);
}
inline void tvmerge_multiply_bfloat16(float* sums, const unsigned* left, const unsigned* right) {
  emulator::multiply<__nv_bfloat16_raw>(sums, left, right);
}
inline unsigned tvmerge_pair_float16(float low, float high) {
  const __half numbers[2] = {__float2half(low), __float2half(high)};
  unsigned word;
  std::memcpy(&word, numbers, sizeof word);
  return word;
}
inline unsigned tvmerge_pair_bfloat16(float low, float high) {
  const __nv_bfloat16 numbers[2] = {__float2bfloat16(low), __float2bfloat16(high)};
  unsigned word;
  std::memcpy(&word, numbers, sizeof word);
  return word;
}
inline void tvmerge_store(void* global, unsigned pair) {
  emulator::check_aligned(global, 4);
  std::memcpy(global, &pair, sizeof pair);
}
// What other lanes show; dlight's reductions use the last ones of these.
inline float tvmerge_from_lane(float value, int lane) {
  emulator::Warp& warp = emulator::warp();
  warp.value[emulator::lane()] = value;
  emulator::wait_for_warp();
  const float other = warp.value[lane < emulator::kWarp ? lane : emulator::lane()];
  emulator::wait_for_warp();
  return other;
}
inline float tvmerge_swap(float value, int mask) { return tvmerge_from_lane(value, emulator::lane() ^ mask); }
inline unsigned tvmerge_vote(int condition) {
  emulator::Warp& warp = emulator::warp();
  warp.value[emulator::lane()] = static_cast<float>(condition);
  emulator::wait_for_warp();
  unsigned bits = 0;
  for (int lane = 0; lane < emulator::kWarp; ++lane) bits |= static_cast<unsigned>(warp.value[lane] != 0) << lane;
  emulator::wait_for_warp();
  return bits;
}
inline int tvmerge_lowest(unsigned bits) { return __builtin_ctz(bits); }
inline float __shfl_down_sync(unsigned, float value, int by, int) { return tvmerge_from_lane(value, emulator::lane() + by); }
inline float __shfl_sync(unsigned, float value, int lane, int) { return tvmerge_from_lane(value, lane); }
inline unsigned __activemask() { return ~0u; }
