// The gradients of the second convolution in bfloat16, on CPUs with AMX: those of all outputs, most of which are zero,
// in less time than the quarter that pooling chose takes with other instructions.
//
// A tile is a register of 16 rows of 64 bytes. One instruction multiplies 16 x 32 by 32 x 16 values in bfloat16,
// exactly, and adds the products to 16 x 16 sums in float32. It takes the second factor with its rows in pairs (VNNI):
// [16, 16, 2].
// Below, a factor has two such tiles, one after the other, and the sums four: of 32 images or channels by 32 channels.

#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

namespace tiles {

using BFloat16Bits = uint16_t;

constexpr int kImages = 32;    // Computed together.
constexpr int kChannels = 32;  // Filters come in multiples of that.

// A thread's tiles, set up for full size, and then as they were: oneDNN has its own on the same thread.
class Tiles {
 public:
  Tiles() {
    Barrier();
    _tile_storeconfig(&before_);
    Configuration own = {};
    own.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
      own.row_bytes[tile] = 64;
      own.rows[tile] = 16;
    }
    Use(own);
  }

  ~Tiles() { Use(before_); }

  // Asks the system, once, to save tiles of this process when it switches threads. It may know no tiles.
  static bool Allowed() {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool allowed = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    return allowed;
  }

  // Compilers do not know what tiles read from memory: what was written before has to be there.
  static void Barrier() { __asm__ volatile("" ::: "memory"); }

 private:
  struct alignas(64) Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  static_assert(sizeof(Configuration) == 64);

  static void Use(const Configuration& configuration) {
    Barrier();
    _tile_loadconfig(&configuration);
  }

  Configuration before_;
};

constexpr int kTile = 16 * 32, kSums = 16 * 16;  // Values in a factor's tile, and in one of sums.

// Multiplies 32 x 32 by 32 x 32 values and adds to the sums.
inline void Multiply(const BFloat16Bits* rows, const BFloat16Bits* pairs) {
  _tile_loadd(4, rows, 64);
  _tile_loadd(6, pairs, 64);
  _tile_loadd(5, rows + kTile, 64);
  _tile_loadd(7, pairs + kTile, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

inline __m512 Widen(__m256i values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

inline __m256i Half(__m512i values, int half) {
  return half == 0 ? _mm512_castsi512_si256(values) : _mm512_extracti64x4_epi64(values, 1);
}

// Returns 16 values of `first` and `second` each, alternating.
inline __m512i Pair(__m256i first, __m256i second) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

// Transposes 16 x 16 values of 32 bits: exchanges the bits of row and column one by one.
inline void Transpose(__m512i (&rows)[16]) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 4
  for (int bit = 1; bit < 16; bit *= 2) {
    const __m512i step = _mm512_set1_epi32(bit), other = _mm512_set1_epi32(16);  // `other` reads the second row.
    const __mmask16 odd = _mm512_test_epi32_mask(lane, step);
    const __m512i upper = _mm512_mask_add_epi32(lane, odd, _mm512_sub_epi32(lane, step), other);
    const __m512i lower = _mm512_mask_add_epi32(_mm512_add_epi32(lane, step), odd, lane, other);
#pragma GCC unroll 16
    for (int row = 0; row < 16; ++row) {
      if (row & bit) continue;
      const __m512i first = rows[row], second = rows[row + bit];
      rows[row] = _mm512_permutex2var_epi32(first, upper, second);
      rows[row + bit] = _mm512_permutex2var_epi32(first, lower, second);
    }
  }
}

// Brings weights into the order of a second factor, with pairs of filters: [pixels, channels, filters] -> [pixels,
// filters / 32, channels / 16, 16, 16, 2].
inline void Pack(const BFloat16Bits* weights, int pixels, int channels, int filters, BFloat16Bits* packed) {
  for (int pixel = 0; pixel < pixels; ++pixel) {
    for (int filter = 0; filter < filters; filter += kChannels) {
      for (int channel = 0; channel < channels; channel += 16, packed += kTile) {
        __m512i rows[16];
#pragma GCC unroll 16
        for (int row = 0; row < 16; ++row) {
          rows[row] = _mm512_loadu_si512(weights + (pixel * channels + channel + row) * filters + filter);
        }
        Transpose(rows);
#pragma GCC unroll 16
        for (int row = 0; row < 16; ++row) _mm512_storeu_si512(packed + 32 * row, rows[row]);
      }
    }
  }
}

// Puts each gradient where pooling found its maximum, and zeros elsewhere; also where winners are `dead` or larger, and
// beyond `count` images.
//   winners, upstream [count, edge, edge, filters] -> unpooled [2 edge, 2 edge, filters / 32, 32, 32], pairs [2 edge, 2
//   edge, filters / 16, 16, 16, 2]; bias_sums [filters], which grow
inline void Unpool(const uint8_t* winners, const BFloat16Bits* upstream, uint8_t dead, int count, int edge, int filters,
                   BFloat16Bits* unpooled, BFloat16Bits* pairs, double* bias_sums) {
  const int windows = edge * edge;
  for (int image = 0; image < kImages; image += 2) {
    for (int start = 0; start < filters; start += kChannels) {
      __m512 sums[2] = {};
      for (int window = 0; window < windows; ++window) {
        __m512i gradients[2] = {};
        __m256i positions[2] = {};
        for (int each = 0; each < 2 && image + each < count; ++each) {
          const int64_t at = (int64_t{image + each} * windows + window) * filters + start;
          positions[each] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(winners + at));
          const __mmask32 alive = _mm256_cmplt_epu8_mask(positions[each], _mm256_set1_epi8(static_cast<char>(dead)));
          gradients[each] = _mm512_maskz_loadu_epi16(alive, upstream + at);
          for (int half = 0; half < 2; ++half) sums[half] += Widen(Half(gradients[each], half));
        }
#pragma GCC unroll 4
        for (int position = 0; position < 4; ++position) {
          const int output = (2 * (window / edge) + position / 2) * 2 * edge + 2 * (window % edge) + position % 2;
          __m512i own[2];
#pragma GCC unroll 2
          for (int each = 0; each < 2; ++each) {
            const __mmask32 here = _mm256_cmpeq_epi8_mask(positions[each], _mm256_set1_epi8(position));
            own[each] = _mm512_maskz_mov_epi16(here, gradients[each]);
            BFloat16Bits* to = unpooled + (output * filters + start) * kImages + (image + each) * kChannels;
            _mm512_storeu_si512(to, own[each]);
          }
#pragma GCC unroll 2
          for (int half = 0; half < 2; ++half) {
            _mm512_storeu_si512(pairs + (output * filters + start + 16 * half) * kImages + image * 16,
                                Pair(Half(own[0], half), Half(own[1], half)));
          }
        }
      }
      for (int lane = 0; lane < kChannels; ++lane) bias_sums[start + lane] += sums[lane / 16][lane % 16];
    }
  }
}

// Transposes images and channels; zeros beyond `count` images.
//   features [pixels, stride, channels], of which `count` images -> transposed [pixels, channels, 32]
inline void TransposeFeatures(const BFloat16Bits* features, int count, int64_t stride, int pixels, int channels,
                              BFloat16Bits* transposed) {
  for (int pixel = 0; pixel < pixels; ++pixel) {
    for (int start = 0; start < channels; start += 16) {
      const auto read = [&](int image) {
        if (image >= count) return __m256i{};
        const BFloat16Bits* from = features + (pixel * stride + image) * channels + start;
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      };
      __m512i rows[16];
#pragma GCC unroll 16
      for (int row = 0; row < 16; ++row) rows[row] = Pair(read(2 * row), read(2 * row + 1));
      Transpose(rows);
#pragma GCC unroll 16
      for (int row = 0; row < 16; ++row) {
        _mm512_storeu_si512(transposed + (int64_t{pixel} * channels + start + row) * kImages, rows[row]);
      }
    }
  }
}

// What 32 images add to the gradients of the weights.
//   transposed [edge + size - 1, edge + size - 1, channels, 32] and pairs [edge, edge, filters / 16, 16, 16, 2], of the
//   convolution's input and output -> of_kernel [size, size, channels, filters], which grows
inline void AddWeightGradients(const BFloat16Bits* transposed, const BFloat16Bits* pairs, int size, int edge,
                               int channels, int filters, float* of_kernel) {
  Tiles::Barrier();
  const int64_t stride = filters * sizeof(float);
  for (int k = 0; k < size * size; ++k) {
    for (int channel = 0; channel < channels; channel += kChannels) {
      for (int filter = 0; filter < filters; filter += kChannels) {
        float* sums = of_kernel + (k * channels + channel) * filters + filter;
        _tile_loadd(0, sums, stride);
        _tile_loadd(1, sums + 16, stride);
        _tile_loadd(2, sums + 16 * filters, stride);
        _tile_loadd(3, sums + 16 * filters + 16, stride);
        for (int row = 0; row < edge; ++row) {
          const int pixel = (row + k / size) * (edge + size - 1) + k % size;
          const BFloat16Bits* met = transposed + (pixel * channels + channel) * kImages;
          const BFloat16Bits* output = pairs + (row * edge * filters + filter) * kImages;
          for (int column = 0; column < edge; ++column) {
            Multiply(met + column * channels * kImages, output + column * filters * kImages);
          }
        }
        _tile_stored(0, sums, stride);
        _tile_stored(1, sums + 16, stride);
        _tile_stored(2, sums + 16 * filters, stride);
        _tile_stored(3, sums + 16 * filters + 16, stride);
      }
    }
  }
}

// The gradients of one row of the convolution's input, of 32 images.
//   unpooled [edge, edge, filters / 32, 32, 32], of its output; weights as Pack() leaves them -> of_input [edge +
//   size - 1, channels / 16, 32, 16]
inline void InputGradients(const BFloat16Bits* unpooled, const BFloat16Bits* weights, int size, int edge, int channels,
                           int filters, int row, float* of_input) {
  Tiles::Barrier();
  const int first_k = std::max(0, row - edge + 1), last_k = std::min(size - 1, row);
  for (int channel = 0; channel < channels; channel += kChannels) {
    for (int column = 0; column < edge + size - 1; ++column) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int k = first_k; k <= last_k; ++k) {
        for (int j = std::max(0, column - edge + 1); j <= std::min(size - 1, column); ++j) {
          for (int filter = 0; filter < filters; filter += kChannels) {
            Multiply(unpooled + (((row - k) * edge + column - j) * filters + filter) * kImages,
                     weights + ((k * size + j) * filters + filter) * channels + channel * 32);
          }
        }
      }
      float* sums = of_input + (column * channels + channel) * kImages;
      _tile_stored(0, sums, 64);
      _tile_stored(2, sums + kSums, 64);
      _tile_stored(1, sums + 2 * kSums, 64);
      _tile_stored(3, sums + 3 * kSums, 64);
    }
  }
}

}  // namespace tiles
