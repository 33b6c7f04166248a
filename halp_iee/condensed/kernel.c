/* y = W x + b for a weight with few nonzeros, on the CPU, in two layouts of the same weights.
 *
 * One sample: a tile of 16 neurons lies across the lanes of a register. The inputs are cut into blocks of
 * 32, which fit into two registers, so that fetching 16 inputs is one permutation (about a cycle) instead
 * of a gather (about one cycle an element). A tile has `steps` slots for each block; what exceeds them is
 * gathered from the whole input.
 *
 * Several samples: the inputs are transposed so that 16 samples lie side by side, and every nonzero is one
 * multiply-add over them, without any gather.
 *
 * Without AVX-512 the first falls back to plain loops; the second is plain loops that compilers vectorise.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define WIDE 1
#else
#define WIDE 0
#endif

typedef struct {
  int64_t rows, columns, threads;
  const float *bias; /* [rows] or null */
  /* rows: neuron r has the nonzeros start[r] .. start[r + 1] */
  const int64_t *start;    /* [rows + 1] */
  const float *values;     /* [nonzeros] */
  const uint16_t *index16; /* [nonzeros]; null when columns exceed 16 bits */
  const int32_t *index32;  /* [nonzeros]; null when index16 is there */
  /* tiles of 16 neurons; null when they were not made */
  int64_t tiles, blocks;
  const uint8_t *steps;      /* [tiles * blocks] slots of each block */
  const int64_t *first;      /* [tiles] first slot of each tile */
  const float *slot_values;  /* [slots * 16] */
  const uint8_t *slot_index; /* [slots * 16] place in the block */
  const int32_t *rest;       /* [tiles] gathered slots */
  const int64_t *rest_first; /* [tiles] */
  const float *rest_values;  /* [rest slots * 16] */
  const uint16_t *rest_index; /* [rest slots * 16] column */
} Weights;

int condensed_has_tiles(void) { return WIDE; }

/* ---- one sample ---- */

#if WIDE
static void tile_of_one(const Weights *w, const float *x, float *y, int64_t t) {
  const uint8_t *steps = w->steps + t * w->blocks;
  const float *value = w->slot_values + w->first[t] * 16;
  const uint8_t *index = w->slot_index + w->first[t] * 16;
  __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;
  for (int64_t block = 0; block < w->blocks; block++) {
    int n = steps[block];
    if (!n) continue;
    int64_t left = w->columns - block * 32;
    __m512 low, high;
    if (left >= 32) {
      low = _mm512_loadu_ps(x + block * 32);
      high = _mm512_loadu_ps(x + block * 32 + 16);
    } else {
      uint32_t mask = (1u << left) - 1;
      low = _mm512_maskz_loadu_ps((__mmask16)mask, x + block * 32);
      high = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), x + block * 32 + 16);
    }
#define SLOT(into, s)                                                                           \
  into = _mm512_fmadd_ps(_mm512_permutex2var_ps(low,                                            \
      _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(index + (s) * 16))), high),        \
      _mm512_loadu_ps(value + (s) * 16), into)
    int s = 0;
    for (; s + 4 <= n; s += 4) {
      SLOT(a, s);
      SLOT(b, s + 1);
      SLOT(c, s + 2);
      SLOT(d, s + 3);
    }
    if (s + 2 <= n) {
      SLOT(a, s);
      SLOT(b, s + 1);
      s += 2;
    }
    if (s < n) SLOT(c, s);
    value += (int64_t)n * 16;
    index += (int64_t)n * 16;
  }
  const float *rest_value = w->rest_values + w->rest_first[t] * 16;
  const uint16_t *rest_index = w->rest_index + w->rest_first[t] * 16;
  for (int s = 0; s < w->rest[t]; s++) {
    __m512i at = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(rest_index + s * 16)));
    __m512 got = _mm512_i32gather_ps(at, x, 4);
    __m512 v = _mm512_loadu_ps(rest_value + s * 16);
    if (s & 1) d = _mm512_fmadd_ps(got, v, d);
    else c = _mm512_fmadd_ps(got, v, c);
  }
  int64_t row = t * 16, lanes = w->rows - row;
  __mmask16 live = lanes >= 16 ? 0xffff : (__mmask16)((1u << lanes) - 1);
  __m512 sum = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
  if (w->bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(live, w->bias + row));
  _mm512_mask_storeu_ps(y + row, live, sum);
}
#endif

#define ROW_OF_ONE(NAME, INDEX)                                                                 \
  static float NAME(const Weights *w, const INDEX *index, const float *x, int64_t r) {          \
    float a = 0, b = 0, c = 0, d = 0;                                                           \
    int64_t i = w->start[r], end = w->start[r + 1];                                             \
    for (; i + 4 <= end; i += 4) {                                                              \
      a += w->values[i] * x[index[i]];                                                          \
      b += w->values[i + 1] * x[index[i + 1]];                                                  \
      c += w->values[i + 2] * x[index[i + 2]];                                                  \
      d += w->values[i + 3] * x[index[i + 3]];                                                  \
    }                                                                                           \
    for (; i < end; i++) a += w->values[i] * x[index[i]];                                       \
    return (a + b) + (c + d) + (w->bias ? w->bias[r] : 0.0f);                                   \
  }
ROW_OF_ONE(row_of_one16, uint16_t)
ROW_OF_ONE(row_of_one32, int32_t)

void condensed_one(const Weights *w, const float *x, float *y) {
#if WIDE
  if (w->tiles) {
#pragma omp parallel for num_threads(w->threads) if (w->threads > 1)
    for (int64_t t = 0; t < w->tiles; t++) tile_of_one(w, x, y, t);
    return;
  }
#endif
#pragma omp parallel for num_threads(w->threads) if (w->threads > 1)
  for (int64_t r = 0; r < w->rows; r++)
    y[r] = w->index16 ? row_of_one16(w, w->index16, x, r) : row_of_one32(w, w->index32, x, r);
}

/* ---- several samples ---- */

typedef float Vec8 __attribute__((vector_size(32), may_alias));
typedef float Vec16 __attribute__((vector_size(64), may_alias));

/* COUNT vectors of samples of every input side by side: xt[column * lanes + sample], zeros behind the last
 * sample. Results go to out[lanes]. Two chains of sums, as a multiply-add takes four cycles. */
#define BATCH(NAME, INDEX, VEC, COUNT)                                                          \
  static void NAME(const Weights *w, const INDEX *index, const float *xt, float *out, int64_t r) { \
    VEC acc[COUNT], other[COUNT];                                                               \
    const VEC *x = (const VEC *)xt;                                                             \
    float bias = w->bias ? w->bias[r] : 0.0f;                                                   \
    for (int v = 0; v < COUNT; v++) acc[v] = (VEC){0} + bias, other[v] = (VEC){0};              \
    int64_t i = w->start[r], end = w->start[r + 1];                                             \
    for (; i + 2 <= end; i += 2) {                                                              \
      const VEC *p = x + (int64_t)index[i] * COUNT, *q = x + (int64_t)index[i + 1] * COUNT;     \
      float a = w->values[i], b = w->values[i + 1];                                             \
      for (int v = 0; v < COUNT; v++) acc[v] += a * p[v], other[v] += b * q[v];                 \
    }                                                                                           \
    if (i < end) {                                                                              \
      const VEC *p = x + (int64_t)index[i] * COUNT;                                             \
      for (int v = 0; v < COUNT; v++) acc[v] += w->values[i] * p[v];                            \
    }                                                                                           \
    for (int v = 0; v < COUNT; v++) ((VEC *)out)[v] = acc[v] + other[v];                        \
  }
BATCH(row8_16, uint16_t, Vec8, 1)
BATCH(row8_32, int32_t, Vec8, 1)
BATCH(row16_16, uint16_t, Vec16, 1)
BATCH(row16_32, int32_t, Vec16, 1)
BATCH(row32_16, uint16_t, Vec16, 2)
BATCH(row32_32, int32_t, Vec16, 2)
BATCH(row64_16, uint16_t, Vec16, 4)
BATCH(row64_32, int32_t, Vec16, 4)

typedef void (*Row16)(const Weights *, const uint16_t *, const float *, float *, int64_t);
typedef void (*Row32)(const Weights *, const int32_t *, const float *, float *, int64_t);

/* Returns 0, or 1 when there is no memory for the transposed inputs. */
int condensed_many(const Weights *w, const float *x, float *y, int64_t samples, int64_t lanes) {
  float *xt = aligned_alloc(64, (size_t)(w->columns * lanes * 4 + 63) / 64 * 64);
  if (!xt) return 1;
  Row16 row16 = lanes == 8 ? row8_16 : lanes == 16 ? row16_16 : lanes == 32 ? row32_16 : row64_16;
  Row32 row32 = lanes == 8 ? row8_32 : lanes == 16 ? row16_32 : lanes == 32 ? row32_32 : row64_32;
  for (int64_t at = 0; at < samples; at += lanes) {
    int64_t n = samples - at < lanes ? samples - at : lanes;
    if (n < lanes) memset(xt, 0, (size_t)(w->columns * lanes) * 4);
    for (int64_t c0 = 0; c0 < w->columns; c0 += 16) {
      int64_t c1 = c0 + 16 < w->columns ? c0 + 16 : w->columns;
      for (int64_t l = 0; l < n; l++)
        for (int64_t c = c0; c < c1; c++) xt[c * lanes + l] = x[(at + l) * w->columns + c];
    }
    float *out = y + at * w->rows;
    /* Sixteen neurons at a time, so that each sample's results are written as whole cache lines: writing
     * them one by one, rows * 4 bytes apart, throws each other out of the cache. */
#pragma omp parallel for num_threads(w->threads) if (w->threads > 1)
    for (int64_t r0 = 0; r0 < w->rows; r0 += 16) {
      float some[16 * 64] __attribute__((aligned(64)));
      int64_t rows = w->rows - r0 < 16 ? w->rows - r0 : 16;
      for (int64_t j = 0; j < rows; j++) {
        if (w->index16) row16(w, w->index16, xt, some + j * lanes, r0 + j);
        else row32(w, w->index32, xt, some + j * lanes, r0 + j);
      }
      for (int64_t l = 0; l < n; l++)
        for (int64_t j = 0; j < rows; j++) out[l * w->rows + r0 + j] = some[j * lanes + l];
    }
  }
  free(xt);
  return 0;
}
