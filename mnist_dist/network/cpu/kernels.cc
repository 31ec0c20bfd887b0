// What TensorFlow has no fast operations for on CPUs: the first convolution, in float32 the second one too, pooling, and
// the gradients of all of these.
//
// The maximum of 2 x 2 values passes its gradient to one of them, so that three in four gradients of a convolution's
// outputs are zero. The fourth alone is multiplied here: where a filter found the maximum, its gradient times the
// pixels it met goes to its weights, and times its weights to those pixels. Where ReLU is zero the gradient is so, too,
// but leaving that out would make a step the faster the more the network has learnt, and no two runs comparable.
// On CPUs with tiles, tiles.h is faster still for the second convolution, and multiplies all of its gradients.
//
// Built by build.py against TensorFlow's C interface, which stays the same from one release to the next.
// Each operation takes one thread; TensorFlow runs several of them side by side.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include "tiles.h"
#endif

#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"

namespace {

constexpr int kImageSize = 28;
// Channels computed together, as many as a register holds: compilers split longer vectors badly.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int32_t kDead = 4;  // Added to the position of a window's maximum, 0 to 3, where ReLU is zero.

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
using Halves = uint16_t __attribute__((vector_size(2 * kLanes)));
using Bytes = uint8_t __attribute__((vector_size(kLanes)));

struct BFloat16 {  // The upper half of a float.
  uint16_t bits;
};

#if defined(__AVX512F__)  // What compilers make of __builtin_convertvector takes several instructions.
Ints Widen(const Halves& halves) {
  return reinterpret_cast<Ints>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(halves)));
}

Ints Widen(const Bytes& bytes) {
  return reinterpret_cast<Ints>(_mm512_cvtepu8_epi32(reinterpret_cast<__m128i>(bytes)));
}
#else
template <typename Narrow>
Ints Widen(const Narrow& narrow) {
  return __builtin_convertvector(narrow, Ints);
}
#endif

void Read(const float* from, Floats& values) { std::memcpy(&values, from, sizeof values); }

void Read(const BFloat16* from, Floats& values) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  values = reinterpret_cast<Floats>(Widen(halves) << 16);
}

void Read(const uint8_t* from, Ints& values) {
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  values = Widen(bytes);
}

void Write(float* to, const Floats& values) { std::memcpy(to, &values, sizeof values); }

void Write(int32_t* to, const Ints& values) { std::memcpy(to, &values, sizeof values); }

void Write(BFloat16* to, const Floats& values) {  // Rounds to the nearest, half to even; NaN stays NaN.
  const Ints bits = reinterpret_cast<Ints>(values);
  const Ints rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const Halves halves = __builtin_convertvector((values == values ? rounded : bits | 0x400000) >> 16, Halves);
  std::memcpy(to, &halves, sizeof halves);
}

void Write(uint8_t* to, const Ints& values) {
  const Bytes bytes = __builtin_convertvector(values, Bytes);
  std::memcpy(to, &bytes, sizeof bytes);
}

float ToFloat(float value) { return value; }

float ToFloat(BFloat16 value) {
  const uint32_t bits = uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// The same for the first `count` channels, of which there may be fewer than kLanes; the others read as zero.
template <typename T, typename Vector>
void Read(const T* from, int count, Vector& values) {
  if (count >= kLanes) return Read(from, values);
  T padded[kLanes] = {};
  std::memcpy(padded, from, count * sizeof(T));
  Read(padded, values);
}

template <typename T, typename Vector>
void Write(T* to, int count, const Vector& values) {
  if (count >= kLanes) return Write(to, values);
  T padded[kLanes];
  Write(padded, values);
  std::memcpy(to, padded, count * sizeof(T));
}

int BlocksOf(int channels) { return (channels + kLanes - 1) / kLanes; }

// ReLU of the maximum of a window's four sums, and which of them it is.
struct Window {
  Floats maximum = {};
  Ints winner = {};

  void Take(int position, const Floats& sums) {
    const Ints larger = sums > maximum;
    maximum = position == 0 ? sums : larger ? sums : maximum;
    winner = position == 0 ? Ints{} : larger ? Ints{} + position : winner;
  }

  void Activate(const Floats& bias) {
    maximum += bias;
    const Ints dead = maximum <= 0.0f;  // Not where it is NaN, which must not be lost.
    maximum = dead ? Floats{} : maximum;
    winner += dead & kDead;
  }
};

// Functions with a parameter K are compiled for kernels of K x K pixels, which keeps their weights in registers, and
// with K = 0 for those of any `size`.
template <int K>
constexpr int kMaxEdge = K > 0 ? K : kImageSize;

template <typename Function>
Function ForSize(int size, Function three, Function five, Function any) {
  return size == 3 ? three : size == 5 ? five : any;
}

// Convolves images of one channel, pools 2 x 2, adds the bias and applies ReLU.
//   images [count, 28, 28], kernel [size, size, filters], bias [filters] -> features, winners [edge, edge, count,
//   filters]
template <typename T, int K>
void ConvolvePixels(const float* images, const float* kernel, const float* bias, int size, int edge, int count,
                    int filters, T* features, uint8_t* winners) {
  if (K > 0) size = K;
  for (int start = 0; start < filters; start += kLanes) {
    const int lanes = filters - start;
    Floats weights[kMaxEdge<K> * kMaxEdge<K>], offset;
    for (int k = 0; k < size * size; ++k) Read(kernel + k * filters + start, lanes, weights[k]);
    Read(bias + start, lanes, offset);
    for (int row = 0; row < edge; ++row) {
      for (int column = 0; column < edge; ++column) {
        for (int image = 0; image < count; ++image) {
          const float* patch = images + (image * kImageSize + 2 * row) * kImageSize + 2 * column;
          Window window;
#pragma GCC unroll 4
          for (int position = 0; position < 4; ++position) {
            Floats sums = {};
#pragma GCC unroll 25
            for (int k = 0; k < size * size; ++k) {
              sums += weights[k] * patch[(position / 2 + k / size) * kImageSize + position % 2 + k % size];
            }
            window.Take(position, sums);
          }
          window.Activate(offset);
          const int64_t at = (int64_t{row * edge + column} * count + image) * filters + start;
          Write(features + at, lanes, window.maximum);
          Write(winners + at, lanes, window.winner);
        }
      }
    }
  }
}

// Pools 2 x 2, adds the bias and applies ReLU.
//   convolved [2 * edge, 2 * edge, count, filters], bias [filters] -> features, winners [count, edge, edge, filters]
template <typename T>
void PoolRelu(const T* convolved, const float* bias, int edge, int count, int filters, T* features, uint8_t* winners) {
  const int64_t stride = int64_t{count} * filters;
  for (int row = 0; row < edge; ++row) {
    for (int column = 0; column < edge; ++column) {
      for (int image = 0; image < count; ++image) {
        for (int start = 0; start < filters; start += kLanes) {
          const int lanes = filters - start;
          Floats offset, values;
          Read(bias + start, lanes, offset);
          Window window;
          for (int position = 0; position < 4; ++position) {
            const int pixel = (2 * row + position / 2) * 2 * edge + 2 * column + position % 2;
            Read(convolved + pixel * stride + image * filters + start, lanes, values);
            window.Take(position, values);
          }
          window.Activate(offset);
          const int64_t at = ((int64_t{image} * edge + row) * edge + column) * filters + start;
          Write(features + at, lanes, window.maximum);
          Write(winners + at, lanes, window.winner);
        }
      }
    }
  }
}

// Convolves one window of pooling, its four sums in each of some images, with kVectors * kLanes filters; then as PoolRelu.
//   input: the window's first pixel in the first image, with pixels `column` apart in a row and rows `row` apart; the
//   images' channels follow one another
//   weights [size, size, channels, kVectors * kLanes] -> windows [images][kVectors]
constexpr int kVectors = 2;

template <int Images>
void ConvolveWindow(const float* input, int64_t row, int64_t column, int channels, const Floats* weights, int size,
                    Window (&windows)[Images][kVectors]) {
  Floats sums[Images][4][kVectors] = {};
  for (int k = 0; k < size * size; ++k) {
    const float* pixel = input + k / size * row + k % size * column;
    for (int channel = 0; channel < channels; ++channel, ++pixel, weights += kVectors) {
#pragma GCC unroll 2
      for (int image = 0; image < Images; ++image) {
#pragma GCC unroll 4
        for (int position = 0; position < 4; ++position) {
          const float value = pixel[image * channels + position / 2 * row + position % 2 * column];
#pragma GCC unroll 2
          for (int vector = 0; vector < kVectors; ++vector) sums[image][position][vector] += value * weights[vector];
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int image = 0; image < Images; ++image) {
#pragma GCC unroll 4
    for (int position = 0; position < 4; ++position) {
#pragma GCC unroll 2
      for (int vector = 0; vector < kVectors; ++vector) {
        windows[image][vector].Take(position, sums[image][position][vector]);
      }
    }
  }
}

// Convolves, pools 2 x 2, adds the bias and applies ReLU.
//   input [2 * edge + size - 1, the same, count, channels], kernel [size, size, channels, filters], bias [filters] ->
//   features, winners [count, edge, edge, filters]
void ConvolveFeatures(const float* input, const float* kernel, const float* bias, int size, int edge, int count,
                      int channels, int filters, float* features, uint8_t* winners) {
  constexpr int kImages = kLanes == 16 ? 2 : 1;  // As many as there are registers for.
  constexpr int kFilters = kVectors * kLanes;
  const int blocks = (filters + kFilters - 1) / kFilters, products = size * size * channels;
  const int64_t column = int64_t{count} * channels, row = (2 * edge + size - 1) * column;
  static thread_local std::vector<Floats> packed;  // [blocks, products, kVectors]; zero beyond the filters.
  packed.resize(blocks * products * kVectors);
  for (int block = 0; block < blocks; ++block) {
    for (int product = 0; product < products; ++product) {
      for (int vector = 0; vector < kVectors; ++vector) {
        const int start = block * kFilters + vector * kLanes;
        Floats& weights = packed[(block * products + product) * kVectors + vector];
        weights = Floats{};
        if (start < filters) Read(kernel + product * filters + start, filters - start, weights);
      }
    }
  }
  const auto convolve = [&](int image, auto images) {
    for (int block = 0; block < blocks; ++block) {
      for (int window = 0; window < edge * edge; ++window) {
        const int64_t corner = 2 * (window / edge) * row + 2 * (window % edge) * column;
        Window sums[images][kVectors];
        ConvolveWindow<images>(input + corner + image * channels, row, column, channels,
                               &packed[block * products * kVectors], size, sums);
        for (int each = 0; each < images; ++each) {
          for (int vector = 0; vector < kVectors; ++vector) {
            const int start = block * kFilters + vector * kLanes, lanes = filters - start;
            if (lanes <= 0) break;
            Floats offset;
            Read(bias + start, lanes, offset);
            sums[each][vector].Activate(offset);
            const int64_t at = ((int64_t{image} + each) * edge * edge + window) * filters + start;
            Write(features + at, lanes, sums[each][vector].maximum);
            Write(winners + at, lanes, sums[each][vector].winner);
          }
        }
      }
    }
  };
  int image = 0;
  for (; image + kImages <= count; image += kImages) convolve(image, std::integral_constant<int, kImages>());
  for (; image < count; ++image) convolve(image, std::integral_constant<int, 1>());
}

// What one image adds to the gradients of one filter of the second convolution, for kLanes of its input channels.
//   gradients, met: of the filter, and the first pixel that it met, with `stride` from one window to the next
//   input [rows, rows] -> of_weights [size, size], which grows
template <int K>
void AddWeightGradients(const float* gradients, const int32_t* met, int64_t stride, int windows, int size,
                        int64_t rows, const Floats* input, Floats* of_weights) {
  if (K > 0) size = K;
  Floats sums[kMaxEdge<K> * kMaxEdge<K>];
#pragma GCC unroll 25
  for (int k = 0; k < size * size; ++k) sums[k] = of_weights[k];
  for (int window = 0; window < windows; ++window, gradients += stride, met += stride) {
    const float gradient = *gradients;
    const Floats* pixels = input + *met;
#pragma GCC unroll 5
    for (int row = 0; row < size; ++row, pixels += rows) {
#pragma GCC unroll 5
      for (int column = 0; column < size; ++column) sums[row * size + column] += gradient * pixels[column];
    }
  }
#pragma GCC unroll 25
  for (int k = 0; k < size * size; ++k) of_weights[k] = sums[k];
}

// What one window of the second convolution adds to the gradients of its input, for kLanes channels.
//   won [4, words]: for each position in the window, a bit for each filter that found its maximum there
//   gradients [filters], weights [filters, size, size] -> of_input [size + 1, size + 1] with `rows` pixels in a row,
//   which grows
template <int K>
void AddInputGradients(const uint64_t* won, int words, const float* gradients, const Floats* weights, int size,
                       int rows, Floats* of_input) {
  if (K > 0) size = K;
  const int edge = size + 1;
  Floats sums[(kMaxEdge<K> + 1) * (kMaxEdge<K> + 1)];
#pragma GCC unroll 36
  for (int i = 0; i < edge * edge; ++i) sums[i] = of_input[i / edge * rows + i % edge];
#pragma GCC unroll 4
  for (int position = 0; position < 4; ++position) {
    for (int word = 0; word < words; ++word) {
      for (uint64_t left = won[position * words + word]; left != 0; left &= left - 1) {
        const int64_t filter = 64 * word + __builtin_ctzll(left);
        const float gradient = gradients[filter];
        const Floats* own = weights + filter * size * size;
#pragma GCC unroll 25
        for (int k = 0; k < size * size; ++k) {
          sums[(position / 2 + k / size) * edge + position % 2 + k % size] += gradient * own[k];
        }
      }
    }
  }
#pragma GCC unroll 36
  for (int i = 0; i < edge * edge; ++i) of_input[i / edge * rows + i % edge] = sums[i];
}

// Returns for 64 bytes a bit each, set where the byte equals `value`.
uint64_t BitsWhereEqual(const uint8_t* bytes, uint8_t value) {
#if defined(__AVX512BW__)
  return _mm512_cmpeq_epi8_mask(_mm512_loadu_si512(bytes), _mm512_set1_epi8(static_cast<char>(value)));
#else
  alignas(64) uint8_t equal[64];
  for (int i = 0; i < 64; ++i) equal[i] = bytes[i] == value;
  uint64_t bits = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t eight;
    std::memcpy(&eight, equal + 8 * i, 8);
    bits |= (eight * 0x0102040810204080) >> 56 << (8 * i);  // The product moves the bytes' lowest bits together.
  }
  return bits;
#endif
}

// What one window of the second convolution hands on, filter by filter.
//   winners, upstream [filters], `corner`: its first pixel in an input with `rows` pixels in a row -> gradients, zero
//   where ReLU was; positions of the maxima, 0 to 3; met, the first pixels that the filters met there; sums, which grow
template <typename T>
void ReadWindow(const uint8_t* winners, const T* upstream, int corner, int rows, int filters, float* gradients,
                uint8_t* positions, int32_t* met, float* sums) {
  for (int start = 0; start < filters; start += kLanes) {
    const int lanes = filters - start;
    Ints winner;
    Floats passed, sum;
    Read(winners + start, lanes, winner);
    Read(upstream + start, lanes, passed);
    Read(sums + start, sum);
    passed = winner < kDead ? passed : Floats{};
    winner &= kDead - 1;
    Write(gradients + start, passed);
    Write(positions + start, lanes, winner);
    Write(met + start, corner + (winner & 1) + (winner >> 1) * rows);
    Write(sums + start, sum + passed);
  }
}

// Calls visit(k, pixels) for each weight of a K x K kernel, with the pixel that it met in each lane: where the kernel's
// first pixel lies at the lane's winner in the window at `patch`, whose image has rows of kImageSize.
#if defined(__AVX512F__)
template <int K, typename Visit>
void Pick(const float* patch, const Ints& winner, Visit visit) {
  static_assert(K + 1 <= kLanes, "a row of the patch fills one register");
  __m512 rows[K + 1];
#pragma GCC unroll 6
  for (int row = 0; row <= K; ++row) rows[row] = _mm512_maskz_loadu_ps((1 << (K + 1)) - 1, patch + row * kImageSize);
  const Ints first = (winner & 1) + (winner & 2) * (kLanes / 2);  // The second row of two follows kLanes later.
#pragma GCC unroll 5
  for (int column = 0; column < K; ++column) {
    const __m512i from = reinterpret_cast<__m512i>(first + column);
#pragma GCC unroll 5
    for (int row = 0; row < K; ++row) {
      visit(row * K + column, reinterpret_cast<Floats>(_mm512_permutex2var_ps(rows[row], from, rows[row + 1])));
    }
  }
}
#endif

// Some rows of windows of one image and kLanes filters of the first convolution.
//   image [28, 28], from where the rows begin; gradients [rows, edge] and winners [rows, edge], with strides from one
//   window to the next -> of_weights [size, size] and of_bias, each of kLanes filters; both sums grow.
template <int K>
void AddPixelGradients(const float* image, const Floats* gradients, int64_t gradient_stride, const uint8_t* winners,
                       int64_t winner_stride, int size, int rows, int edge, int lanes, Floats* of_weights,
                       Floats* of_bias) {
  if (K > 0) size = K;
  Floats sums[kMaxEdge<K> * kMaxEdge<K>], bias_sum = {};
#pragma GCC unroll 25
  for (int k = 0; k < size * size; ++k) sums[k] = of_weights[k];
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < edge; ++column) {
      const float* patch = image + 2 * row * kImageSize + 2 * column;
      const Floats gradient = gradients[(row * edge + column) * gradient_stride];
      Ints winner;
      Read(winners + (row * edge + column) * winner_stride, lanes, winner);
      const Floats alive = winner < kDead ? gradient : Floats{};
      bias_sum += alive;
#if defined(__AVX512F__)
      if constexpr (K > 0) {
        Pick<K>(patch, winner, [&](int k, const Floats& pixels) { sums[k] += alive * pixels; });
        continue;
      }
#endif
#pragma GCC unroll 4
      for (int position = 0; position < 4; ++position) {
        const Floats passed = winner == position ? gradient : Floats{};
#pragma GCC unroll 25
        for (int k = 0; k < size * size; ++k) {
          sums[k] += passed * patch[(position / 2 + k / size) * kImageSize + position % 2 + k % size];
        }
      }
    }
  }
#pragma GCC unroll 25
  for (int k = 0; k < size * size; ++k) of_weights[k] = sums[k];
  *of_bias += bias_sum;
}

// All shapes of the two convolutions.
struct Shape {
  int count;           // Images.
  int size_1, size_2;  // Of the kernels.
  int filters_1, filters_2;
  int edge_1, edge_2;  // Of the pooled outputs.
};

// Brings sums of AddPixelGradients(), [blocks, size_1 * size_1 + 1, kLanes] with those of the biases last, into the
// order of the variables.
void WritePixelGradients(const Shape& s, const Floats* of_pixels, float* of_kernel_1, float* of_bias_1) {
  const int weights_1 = s.size_1 * s.size_1;
  for (int channel = 0; channel < s.filters_1; ++channel) {
    const Floats* of_block = of_pixels + channel / kLanes * (weights_1 + 1);
    for (int k = 0; k < weights_1; ++k) of_kernel_1[k * s.filters_1 + channel] = of_block[k][channel % kLanes];
    of_bias_1[channel] = of_block[weights_1][channel % kLanes];
  }
}

// The gradients of both convolutions, their pooling and ReLU.
//   images [count, 28, 28], features, winners_1 [edge_1, edge_1, count, filters_1], kernel_2 [size_2, size_2,
//   filters_1, filters_2], winners_2, upstream [count, edge_2, edge_2, filters_2] -> of_kernel_1 [size_1, size_1,
//   filters_1], of_bias_1, of_kernel_2, of_bias_2
template <typename T>
void ConvolutionGradients(const Shape& s, const float* images, const uint8_t* winners_1, const T* features,
                          const T* kernel_2, const uint8_t* winners_2, const T* upstream, float* of_kernel_1,
                          float* of_bias_1, float* of_kernel_2, float* of_bias_2) {
  const auto add_weight_gradients =
      ForSize(s.size_2, AddWeightGradients<3>, AddWeightGradients<5>, AddWeightGradients<0>);
  const auto add_input_gradients = ForSize(s.size_2, AddInputGradients<3>, AddInputGradients<5>, AddInputGradients<0>);
  const auto add_pixel_gradients = ForSize(s.size_1, AddPixelGradients<3>, AddPixelGradients<5>, AddPixelGradients<0>);
  const int blocks = BlocksOf(s.filters_1), words = (s.filters_2 + 63) / 64, padded_2 = 64 * words;
  const int pixels = s.edge_1 * s.edge_1, windows = s.edge_2 * s.edge_2;
  const int weights_1 = s.size_1 * s.size_1, weights_2 = s.size_2 * s.size_2;
  const int kernel_vectors = s.filters_2 * weights_2;

  // Each thread keeps its own: as much memory would come from the system and go back to it every time.
  static thread_local std::vector<Floats> memory;
  memory.assign(blocks * (2 * (kernel_vectors + pixels) + weights_1 + 1) + windows * padded_2 / kLanes, Floats{});
  Floats* free = memory.data();
  const auto take = [&free](int vectors) { return (free += vectors) - vectors; };
  Floats* weights = take(blocks * kernel_vectors);     // [blocks, filters_2, size_2, size_2]
  Floats* of_weights = take(blocks * kernel_vectors);  // The same.
  Floats* input = take(blocks * pixels);               // [blocks, edge_1, edge_1], of one image.
  Floats* of_input = take(blocks * pixels);            // The same.
  Floats* of_pixels = take(blocks * (weights_1 + 1));  // [blocks, size_1 * size_1 + 1], the last for the bias.
  float* gradients = reinterpret_cast<float*>(take(windows * padded_2 / kLanes));  // [windows, padded_2]
  std::vector<uint8_t> positions(windows * padded_2, kDead);  // Of each filter's maximum; kDead beyond the filters.
  std::vector<int32_t> met(windows * padded_2);               // The first pixel that each filter met.
  std::vector<uint64_t> won(windows * 4 * words);
  std::vector<float> image_sums(padded_2);
  std::vector<double> bias_sums(s.filters_2);  // Of the images' sums: long sums may nearly cancel.
  std::vector<int> corners(windows);           // The first pixel of each window in the input.
  for (int window = 0; window < windows; ++window) {
    corners[window] = 2 * (window / s.edge_2) * s.edge_1 + 2 * (window % s.edge_2);
  }

  // Calls visit(index in the kernel, block, vector in the block, lane), near each other in both.
  const auto for_each_weight = [&](auto visit) {
    for (int k = 0; k < weights_2; ++k) {
      for (int start = 0; start < s.filters_2; start += kLanes) {
        for (int channel = 0; channel < s.filters_1; ++channel) {
          for (int filter = start; filter < std::min(start + kLanes, s.filters_2); ++filter) {
            visit((k * s.filters_1 + channel) * s.filters_2 + filter,
                  channel / kLanes * kernel_vectors + filter * weights_2 + k, channel % kLanes);
          }
        }
      }
    }
  };
  for_each_weight([&](int from, int to, int lane) { weights[to][lane] = ToFloat(kernel_2[from]); });

  for (int image = 0; image < s.count; ++image) {
    for (int pixel = 0; pixel < pixels; ++pixel) {
      const T* channels = features + (int64_t{pixel} * s.count + image) * s.filters_1;
      for (int block = 0; block < blocks; ++block) {
        Read(channels + block * kLanes, s.filters_1 - block * kLanes, input[block * pixels + pixel]);
      }
    }
    std::memset(of_input, 0, sizeof(Floats) * blocks * pixels);
    std::fill(image_sums.begin(), image_sums.end(), 0.0f);
    for (int window = 0; window < windows; ++window) {
      const int64_t from = (int64_t{image} * windows + window) * s.filters_2;
      const int to = window * padded_2;
      ReadWindow(winners_2 + from, upstream + from, corners[window], s.edge_1, s.filters_2, gradients + to,
                 &positions[to], &met[to], image_sums.data());
      for (int position = 0; position < 4; ++position) {
        for (int word = 0; word < words; ++word) {
          won[(window * 4 + position) * words + word] = BitsWhereEqual(&positions[to + 64 * word], position);
        }
      }
    }
    for (int filter = 0; filter < s.filters_2; ++filter) bias_sums[filter] += image_sums[filter];
    for (int block = 0; block < blocks; ++block) {
      const int first_weight = block * kernel_vectors, first_pixel = block * pixels, first_channel = block * kLanes;
      for (int filter = 0; filter < s.filters_2; ++filter) {
        add_weight_gradients(gradients + filter, &met[filter], padded_2, windows, s.size_2, s.edge_1,
                             input + first_pixel, of_weights + first_weight + filter * weights_2);
      }
      for (int window = 0; window < windows; ++window) {
        add_input_gradients(&won[window * 4 * words], words, gradients + window * padded_2, weights + first_weight,
                            s.size_2, s.edge_1, of_input + first_pixel + corners[window]);
      }
      Floats* of_block = of_pixels + block * (weights_1 + 1);
      add_pixel_gradients(images + int64_t{image} * kImageSize * kImageSize, of_input + first_pixel, 1,
                          winners_1 + int64_t{image} * s.filters_1 + first_channel, int64_t{s.count} * s.filters_1,
                          s.size_1, s.edge_1, s.edge_1, s.filters_1 - first_channel, of_block, of_block + weights_1);
    }
  }

  for_each_weight([&](int to, int from, int lane) { of_kernel_2[to] = of_weights[from][lane]; });
  WritePixelGradients(s, of_pixels, of_kernel_1, of_bias_1);
  std::copy(bias_sums.begin(), bias_sums.end(), of_bias_2);
}

#if defined(__AMX_BF16__)
bool TilesServe(const Shape& s) {
  return s.filters_1 % tiles::kChannels == 0 && s.filters_2 % tiles::kChannels == 0 && tiles::Tiles::Allowed();
}

// The same in bfloat16, where TilesServe().
void ConvolutionGradientsByTiles(const Shape& s, const float* images, const uint8_t* winners_1,
                                 const uint16_t* features, const uint16_t* kernel_2, const uint8_t* winners_2,
                                 const uint16_t* upstream, float* of_kernel_1, float* of_bias_1, float* of_kernel_2,
                                 float* of_bias_2) {
  const auto add_pixel_gradients = ForSize(s.size_1, AddPixelGradients<3>, AddPixelGradients<5>, AddPixelGradients<0>);
  const int blocks = s.filters_1 / kLanes, pixels = s.edge_1 * s.edge_1, outputs = 4 * s.edge_2 * s.edge_2;
  const int weights_1 = s.size_1 * s.size_1, weights_2 = s.size_2 * s.size_2;
  const tiles::Tiles tiles;

  static thread_local std::vector<Floats> memory;
  const auto vectors_of = [](int halves) { return halves / (2 * kLanes); };
  const int unpooled_vectors = vectors_of(outputs * tiles::kImages * s.filters_2);
  const int transposed_vectors = vectors_of(pixels * tiles::kImages * s.filters_1);
  const int weight_vectors = vectors_of(weights_2 * s.filters_1 * s.filters_2);
  const int input_vectors = s.edge_1 * blocks * tiles::kImages, pixel_vectors = blocks * (weights_1 + 1);
  memory.resize(2 * unpooled_vectors + transposed_vectors + weight_vectors + input_vectors + pixel_vectors);
  Floats* free = memory.data();
  const auto take = [&free](int vectors) { return (free += vectors) - vectors; };
  const auto take_halves = [&](int vectors) { return reinterpret_cast<uint16_t*>(take(vectors)); };
  uint16_t* unpooled = take_halves(unpooled_vectors);
  uint16_t* pairs = take_halves(unpooled_vectors);
  uint16_t* transposed = take_halves(transposed_vectors);
  uint16_t* weights = take_halves(weight_vectors);  // As tiles::InputGradients() takes them.
  Floats* of_input = take(input_vectors);           // [edge_1, blocks, images], of one row.
  Floats* of_pixels = take(pixel_vectors);          // [blocks, size_1 * size_1 + 1], the last for the bias.
  std::fill_n(of_pixels, pixel_vectors, Floats{});
  std::fill_n(of_kernel_2, weights_2 * s.filters_1 * s.filters_2, 0.0f);
  std::vector<double> bias_sums(s.filters_2);
  tiles::Pack(kernel_2, weights_2, s.filters_1, s.filters_2, weights);

  for (int first = 0; first < s.count; first += tiles::kImages) {
    const int count = std::min(tiles::kImages, s.count - first);
    const int64_t window = int64_t{first} * s.edge_2 * s.edge_2 * s.filters_2;
    tiles::Unpool(winners_2 + window, upstream + window, kDead, count, s.edge_2, s.filters_2, unpooled,
                  pairs, bias_sums.data());
    for (int row = 0; row < s.edge_1; ++row) {
      tiles::InputGradients(unpooled, weights, s.size_2, 2 * s.edge_2, s.filters_1, s.filters_2, row,
                            reinterpret_cast<float*>(of_input));
      for (int image = 0; image < count; ++image) {
        for (int block = 0; block < blocks; ++block) {
          Floats* of_block = of_pixels + block * (weights_1 + 1);
          const int64_t winner = (int64_t{row} * s.edge_1 * s.count + first + image) * s.filters_1 + block * kLanes;
          add_pixel_gradients(images + ((first + image) * kImageSize + 2 * row) * kImageSize,
                              of_input + block * tiles::kImages + image, blocks * tiles::kImages, winners_1 + winner,
                              int64_t{s.count} * s.filters_1, s.size_1, 1, s.edge_1, kLanes, of_block,
                              of_block + weights_1);
        }
      }
    }
    tiles::TransposeFeatures(features + int64_t{first} * s.filters_1, count, s.count, pixels, s.filters_1, transposed);
    tiles::AddWeightGradients(transposed, pairs, s.size_2, 2 * s.edge_2, s.filters_1, s.filters_2, of_kernel_2);
  }

  WritePixelGradients(s, of_pixels, of_kernel_1, of_bias_1);
  std::copy(bias_sums.begin(), bias_sums.end(), of_bias_2);
}
#endif

// ---- TensorFlow's interface ----

struct Deleter {
  void operator()(TF_Status* status) const { TF_DeleteStatus(status); }
  void operator()(TF_Tensor* tensor) const { TF_DeleteTensor(tensor); }
};
using Status = std::unique_ptr<TF_Status, Deleter>;
using Tensor = std::unique_ptr<TF_Tensor, Deleter>;

// One run of an operation. After an error, Ok() is false and nothing may be computed.
class Run {
 public:
  explicit Run(TF_OpKernelContext* context) : context_(context), status_(TF_NewStatus()) {}

  ~Run() {
    if (!Ok()) TF_OpKernelContext_Failure(context_, status_.get());
  }

  bool Ok() const { return TF_GetCode(status_.get()) == TF_OK; }

  Tensor Input(int index) {
    TF_Tensor* tensor = nullptr;
    if (Ok()) TF_GetInput(context_, index, &tensor, status_.get());
    return Tensor(tensor);
  }

  template <typename T>
  T* Output(int index, TF_DataType type, const std::vector<int64_t>& dims) {
    if (!Ok()) return nullptr;
    size_t bytes = sizeof(T);
    for (const int64_t dim : dims) bytes *= dim;
    outputs_.emplace_back(
        TF_AllocateOutput(context_, index, type, dims.data(), static_cast<int>(dims.size()), bytes, status_.get()));
    return Ok() ? static_cast<T*>(TF_TensorData(outputs_.back().get())) : nullptr;
  }

  // Fails unless the tensor has this shape.
  void Expect(const char* name, const Tensor& tensor, const std::vector<int64_t>& dims) {
    if (!Ok()) return;
    bool same = TF_NumDims(tensor.get()) == static_cast<int>(dims.size());
    for (size_t i = 0; same && i < dims.size(); ++i) same = TF_Dim(tensor.get(), static_cast<int>(i)) == dims[i];
    if (same) return;
    std::string message = std::string(name) + ": received " + Shape(tensor) + ", expected [";
    for (const int64_t dim : dims) message += (message.back() == '[' ? "" : ", ") + std::to_string(dim);
    TF_SetStatus(status_.get(), TF_INVALID_ARGUMENT, (message + "]").c_str());
  }

  void ExpectRank(const char* name, const Tensor& tensor, int rank) {
    if (!Ok() || TF_NumDims(tensor.get()) == rank) return;
    const std::string message =
        std::string(name) + ": received " + Shape(tensor) + ", expected " + std::to_string(rank) + " dimensions";
    TF_SetStatus(status_.get(), TF_INVALID_ARGUMENT, message.c_str());
  }

  void Expect(const char* what, bool holds) {
    if (Ok() && !holds) TF_SetStatus(status_.get(), TF_INVALID_ARGUMENT, (std::string("expected ") + what).c_str());
  }

 private:
  static std::string Shape(const Tensor& tensor) {
    std::string shape = "[";
    for (int i = 0; i < TF_NumDims(tensor.get()); ++i) {
      shape += (i ? ", " : "") + std::to_string(TF_Dim(tensor.get(), i));
    }
    return shape + "]";
  }

  TF_OpKernelContext* context_;
  Status status_;
  std::vector<Tensor> outputs_;
};

template <typename T>
const T* Data(const Tensor& tensor) {
  return static_cast<const T*>(TF_TensorData(tensor.get()));
}

int Dim(const Tensor& tensor, int axis) { return static_cast<int>(TF_Dim(tensor.get(), axis)); }

template <typename T>
struct TypeOf;
template <>
struct TypeOf<float> {
  static constexpr TF_DataType value = TF_FLOAT;
};
template <>
struct TypeOf<BFloat16> {
  static constexpr TF_DataType value = TF_BFLOAT16;
};

int PooledEdge(int size, int kernel_size) { return (size - kernel_size + 1) / 2; }

template <typename T>
void RunConvolvePixels(void* edge_of_output, TF_OpKernelContext* context) {
  Run run(context);
  const Tensor images = run.Input(0), kernel = run.Input(1), bias = run.Input(2);
  run.ExpectRank("images", images, 2);
  run.ExpectRank("kernel", kernel, 4);
  if (!run.Ok()) return;
  const int count = Dim(images, 0), size = Dim(kernel, 0), filters = Dim(kernel, 3);
  const int edge = static_cast<int>(*static_cast<int64_t*>(edge_of_output));
  run.Expect("images", images, {count, kImageSize * kImageSize});
  run.Expect("kernel", kernel, {size, size, 1, filters});
  run.Expect("bias", bias, {filters});
  run.Expect("a kernel that fits the images", size >= 1 && edge >= 1 && edge <= PooledEdge(kImageSize, size));
  T* features = run.Output<T>(0, TypeOf<T>::value, {edge, edge, count, filters});
  uint8_t* winners = run.Output<uint8_t>(1, TF_UINT8, {edge, edge, count, filters});
  if (!run.Ok()) return;
  const auto convolve_pixels = ForSize(size, ConvolvePixels<T, 3>, ConvolvePixels<T, 5>, ConvolvePixels<T, 0>);
  convolve_pixels(Data<float>(images), Data<float>(kernel), Data<float>(bias), size, edge, count, filters, features,
                  winners);
}

void RunConvolveFeatures(void*, TF_OpKernelContext* context) {
  Run run(context);
  const Tensor input = run.Input(0), kernel = run.Input(1), bias = run.Input(2);
  run.ExpectRank("input", input, 4);
  run.ExpectRank("kernel", kernel, 4);
  if (!run.Ok()) return;
  const int rows = Dim(input, 0), count = Dim(input, 2), channels = Dim(input, 3);
  const int size = Dim(kernel, 0), filters = Dim(kernel, 3), edge = (rows - size + 1) / 2;
  run.Expect("a kernel that fits the input", size >= 1 && edge >= 1);
  run.Expect("input", input, {2 * edge + size - 1, 2 * edge + size - 1, count, channels});
  run.Expect("kernel", kernel, {size, size, channels, filters});
  run.Expect("bias", bias, {filters});
  float* features = run.Output<float>(0, TF_FLOAT, {count, edge, edge, filters});
  uint8_t* winners = run.Output<uint8_t>(1, TF_UINT8, {count, edge, edge, filters});
  if (!run.Ok()) return;
  ConvolveFeatures(Data<float>(input), Data<float>(kernel), Data<float>(bias), size, edge, count, channels, filters,
                   features, winners);
}

template <typename T>
void RunPoolRelu(void*, TF_OpKernelContext* context) {
  Run run(context);
  const Tensor convolved = run.Input(0), bias = run.Input(1);
  run.ExpectRank("convolved", convolved, 4);
  if (!run.Ok()) return;
  const int edge = Dim(convolved, 0) / 2, count = Dim(convolved, 2), filters = Dim(convolved, 3);
  run.Expect("convolved", convolved, {2 * edge, 2 * edge, count, filters});
  run.Expect("bias", bias, {filters});
  T* features = run.Output<T>(0, TypeOf<T>::value, {count, edge, edge, filters});
  uint8_t* winners = run.Output<uint8_t>(1, TF_UINT8, {count, edge, edge, filters});
  if (!run.Ok()) return;
  PoolRelu(Data<T>(convolved), Data<float>(bias), edge, count, filters, features, winners);
}

template <typename T>
void RunConvolutionGradients(void* kernel_size_1, TF_OpKernelContext* context) {
  Run run(context);
  const Tensor images = run.Input(0), winners_1 = run.Input(1), features = run.Input(2), kernel_2 = run.Input(3),
               winners_2 = run.Input(4), upstream = run.Input(5);
  run.ExpectRank("kernel_2", kernel_2, 4);
  run.ExpectRank("winners_2", winners_2, 4);
  if (!run.Ok()) return;
  Shape s;
  s.count = Dim(winners_2, 0);
  s.size_1 = static_cast<int>(*static_cast<int64_t*>(kernel_size_1));
  s.size_2 = Dim(kernel_2, 0);
  s.filters_1 = Dim(kernel_2, 2);
  s.filters_2 = Dim(kernel_2, 3);
  s.edge_2 = Dim(winners_2, 1);
  s.edge_1 = 2 * s.edge_2 + s.size_2 - 1;
  run.Expect("images", images, {s.count, kImageSize * kImageSize});
  run.Expect("winners_1", winners_1, {s.edge_1, s.edge_1, s.count, s.filters_1});
  run.Expect("features", features, {s.edge_1, s.edge_1, s.count, s.filters_1});
  run.Expect("kernel_2", kernel_2, {s.size_2, s.size_2, s.filters_1, s.filters_2});
  run.Expect("winners_2", winners_2, {s.count, s.edge_2, s.edge_2, s.filters_2});
  run.Expect("upstream", upstream, {s.count, s.edge_2, s.edge_2, s.filters_2});
  run.Expect("kernels that fit the images", s.size_1 >= 1 && s.size_2 >= 1 && s.edge_2 >= 1 &&
                                                s.edge_1 <= PooledEdge(kImageSize, s.size_1));
  float* of_kernel_1 = run.Output<float>(0, TF_FLOAT, {s.size_1, s.size_1, 1, s.filters_1});
  float* of_bias_1 = run.Output<float>(1, TF_FLOAT, {s.filters_1});
  float* of_kernel_2 = run.Output<float>(2, TF_FLOAT, {s.size_2, s.size_2, s.filters_1, s.filters_2});
  float* of_bias_2 = run.Output<float>(3, TF_FLOAT, {s.filters_2});
  if (!run.Ok()) return;
#if defined(__AMX_BF16__)
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (TilesServe(s)) {
      ConvolutionGradientsByTiles(s, Data<float>(images), Data<uint8_t>(winners_1), Data<uint16_t>(features),
                                  Data<uint16_t>(kernel_2), Data<uint8_t>(winners_2), Data<uint16_t>(upstream),
                                  of_kernel_1, of_bias_1, of_kernel_2, of_bias_2);
      return;
    }
  }
#endif
  ConvolutionGradients(s, Data<float>(images), Data<uint8_t>(winners_1), Data<T>(features), Data<T>(kernel_2),
                       Data<uint8_t>(winners_2), Data<T>(upstream), of_kernel_1, of_bias_1, of_kernel_2, of_bias_2);
}

// Reads an operation's one integer attribute, once for all its runs.
template <const char* Name>
void* ReadAttribute(TF_OpKernelConstruction* construction) {
  const Status status(TF_NewStatus());
  auto* value = new int64_t(0);
  TF_OpKernelConstruction_GetAttrInt64(construction, Name, value, status.get());
  if (TF_GetCode(status.get()) != TF_OK) TF_OpKernelConstruction_Failure(construction, status.get());
  return value;
}

void DeleteAttribute(void* value) { delete static_cast<int64_t*>(value); }

constexpr char kEdge[] = "edge", kKernelSize1[] = "kernel_size_1";

using Create = void* (*)(TF_OpKernelConstruction*);
using Compute = void (*)(void*, TF_OpKernelContext*);

void RegisterKernel(const char* operation, TF_DataType type, Create create, Compute compute) {
  const Status status(TF_NewStatus());
  TF_KernelBuilder* builder =
      TF_NewKernelBuilder(operation, "CPU", create, compute, create == nullptr ? nullptr : DeleteAttribute);
  TF_KernelBuilder_TypeConstraint(builder, "T", type, status.get());
  TF_RegisterKernelBuilder(operation, builder, status.get());
}

void RegisterOperation(const char* name, std::vector<const char*> inputs, std::vector<const char*> outputs,
                       const char* attribute, Create create, Compute compute_float, Compute compute_bfloat16) {
  const Status status(TF_NewStatus());
  TF_OpDefinitionBuilder* builder = TF_NewOpDefinitionBuilder(name);
  TF_OpDefinitionBuilderAddAttr(builder, "T: {float, bfloat16}");
  if (attribute != nullptr) TF_OpDefinitionBuilderAddAttr(builder, attribute);
  for (const char* input : inputs) TF_OpDefinitionBuilderAddInput(builder, input);
  for (const char* output : outputs) TF_OpDefinitionBuilderAddOutput(builder, output);
  TF_OpDefinitionBuilderSetShapeInferenceFunction(builder, TF_ShapeInferenceContextSetUnknownShape);
  TF_RegisterOpDefinition(builder, status.get());
  if (compute_float != nullptr) RegisterKernel(name, TF_FLOAT, create, compute_float);
  if (compute_bfloat16 != nullptr) RegisterKernel(name, TF_BFLOAT16, create, compute_bfloat16);
}

__attribute__((constructor)) void RegisterAll() {
  RegisterOperation("MnistDistConvolvePixels", {"images: float", "kernel: float", "bias: float"},
                    {"features: T", "winners: uint8"}, "edge: int", ReadAttribute<kEdge>, RunConvolvePixels<float>,
                    RunConvolvePixels<BFloat16>);
  // oneDNN convolves in bfloat16, with instructions made for that; in float32 it may copy its input nine times first.
  RegisterOperation("MnistDistConvolveFeatures", {"input: T", "kernel: T", "bias: float"},
                    {"features: T", "winners: uint8"}, nullptr, nullptr, RunConvolveFeatures, nullptr);
  RegisterOperation("MnistDistPoolRelu", {"convolved: T", "bias: float"}, {"features: T", "winners: uint8"}, nullptr,
                    nullptr, nullptr, RunPoolRelu<BFloat16>);
  RegisterOperation("MnistDistConvolutionGradients",
                    {"images: float", "winners_1: uint8", "features: T", "kernel_2: T", "winners_2: uint8",
                     "upstream: T"},
                    {"of_kernel_1: float", "of_bias_1: float", "of_kernel_2: float", "of_bias_2: float"},
                    "kernel_size_1: int", ReadAttribute<kKernelSize1>, RunConvolutionGradients<float>,
                    RunConvolutionGradients<BFloat16>);
}

}  // namespace
