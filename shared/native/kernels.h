/* The arithmetic both entry points share: rounding activations to int8, and 8 outputs of a quantised product.
 *
 * Decoding one token reads every weight once and does two operations with it, so the aim is to need fewer instructions
 * per weight than the memory takes to deliver it. Two ideas get there:
 *
 * 1. llama.cpp's (ggml_vec_dot_q4_1_q8_1): round the activations to int8 as well, in groups of 32. Then one instruction
 *    multiplies 32 pairs of bytes and the floating-point scales are needed once per group:
 *
 *      y[n] = Σ_g  d[n,g]·dx[g]·Σ_i q[n,g,i]·xq[g,i]  +  m[n,g]·dx[g]·Σ_i xq[g,i]
 *
 * 2. Tiles: the blocks of 8 outputs are stored together (shared/native/__init__.py does it at load time), 4 inputs of
 *    output 0, the same 4 of output 1, ... One 256-bit vector then holds 8 outputs × 4 inputs, every output keeps to its
 *    own 32-bit lane, all scale arithmetic happens for 8 outputs at once and no sum ever crosses lanes.
 *
 *      Q4_1 tile of one group, 160 bytes:  8 × (d, m) float16 | 4 × 32 bytes; low nibbles inputs 0..15, high 16..31
 *      Q8_0 tile of one group, 272 bytes:  8 × d float16      | 8 × 32 bytes
 *
 * With several rows (sequences decoded together) a vector is unpacked once and multiplied with up to 8 of them.
 */
#ifndef KERNELS_H
#define KERNELS_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { GROUP = 32, TILE = 8, MAX_ROWS = 8, Q4_1 = 0, Q8_0 = 1 };
static const int TILE_BYTES[] = {160, 272}; /* per group, by kind */

/* A weight matrix [outputs, 32·groups] as tiles; the last tile is padded with zeros. bias may be NULL. */
typedef struct {
    const uint8_t *tiles;
    const float *bias;
    int32_t kind, outputs, groups;
} matrix;

/* Rounded rows [rows, 32·groups], each group's scale dx, and dx·Σxq (what a group's minimum multiplies). */
typedef struct {
    int8_t *q;
    float *scale, *sum;
} activations;

static void quantize(const float *restrict x, int groups, activations a) {
    const __m256 no_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int g = 0; g < groups; g++, x += GROUP) {
        __m256 v[4], top = _mm256_setzero_ps();
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            top = _mm256_max_ps(top, _mm256_and_ps(v[i], no_sign));
        }
        __m128 most = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
        most = _mm_max_ps(most, _mm_movehl_ps(most, most));
        const float largest = _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
        const __m256 inverse = _mm256_set1_ps(largest > 0 ? 127.0f / largest : 0);
        __m256i n[4];
        for (int i = 0; i < 4; i++) n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse)); /* rounds to nearest */
        const __m256i total = _mm256_add_epi32(_mm256_add_epi32(n[0], n[1]), _mm256_add_epi32(n[2], n[3]));
        __m128i half = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
        half = _mm_hadd_epi32(half, half);
        half = _mm_hadd_epi32(half, half);
        /* Packing works within 128-bit halves; the last permutation puts the groups of four back in order. */
        const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256((__m256i *)(a.q + g * GROUP), _mm256_permutevar8x32_epi32(bytes, order));
        a.scale[g] = largest / 127.0f;
        a.sum[g] = a.scale[g] * (float)_mm_cvtsi128_si32(half);
    }
}

/* Inputs 4k..4k+3 of one group, repeated for each of the 8 outputs of a tile. */
INLINE __m256i four_inputs(const int8_t *x, int k) {
    int32_t bytes;
    memcpy(&bytes, x + 4 * k, 4);
    return _mm256_set1_epi32(bytes);
}

/* y[r][0..7] of a Q4_1 tile. 8 · 2 · 15 · 127 = 30480 fits int16, so a whole group is summed before widening. */
INLINE void tile_q4_1(const uint8_t *tile, int groups, activations a, int rows, __m256 *y) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int r = 0; r < rows; r++) y[r] = _mm256_setzero_ps();
    for (int g = 0; g < groups; g++, tile += 160) {
        const __m256i *words = (const __m256i *)tile;
        const __m256i dm = _mm256_loadu_si256(words);
        const __m256 first = _mm256_cvtph_ps(_mm256_castsi256_si128(dm)); /* d0 m0 d1 m1 d2 m2 d3 m3 */
        const __m256 second = _mm256_cvtph_ps(_mm256_extracti128_si256(dm, 1));
        const __m256d ds = _mm256_castps_pd(_mm256_shuffle_ps(first, second, 0x88)); /* d0 d1 d4 d5 | d2 d3 d6 d7 */
        const __m256d ms = _mm256_castps_pd(_mm256_shuffle_ps(first, second, 0xdd));
        const __m256 d = _mm256_castpd_ps(_mm256_permute4x64_pd(ds, 0xd8));
        const __m256 m = _mm256_castpd_ps(_mm256_permute4x64_pd(ms, 0xd8));
        __m256i w[8];
        for (int k = 0; k < 4; k++) {
            const __m256i packed = _mm256_loadu_si256(words + 1 + k);
            w[k] = _mm256_and_si256(packed, low);
            w[k + 4] = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low);
        }
        for (int r = 0; r < rows; r++) {
            const int at = r * groups + g;
            const int8_t *x = a.q + (int64_t)at * GROUP;
            __m256i even = _mm256_maddubs_epi16(w[0], four_inputs(x, 0));
            __m256i odd = _mm256_maddubs_epi16(w[1], four_inputs(x, 1));
            for (int k = 2; k < 8; k += 2) {
                even = _mm256_add_epi16(even, _mm256_maddubs_epi16(w[k], four_inputs(x, k)));
                odd = _mm256_add_epi16(odd, _mm256_maddubs_epi16(w[k + 1], four_inputs(x, k + 1)));
            }
            const __m256 dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_add_epi16(even, odd), ones));
            const __m256 minima = _mm256_mul_ps(m, _mm256_set1_ps(a.sum[at]));
            const __m256 scaled = _mm256_fmadd_ps(dot, _mm256_mul_ps(d, _mm256_set1_ps(a.scale[at])), minima);
            y[r] = _mm256_add_ps(y[r], scaled);
        }
    }
}

/* y[r][0..7] of a Q8_0 tile. The instruction wants unsigned × signed: |w| × (x with the sign of w). */
INLINE void tile_q8_0(const uint8_t *tile, int groups, activations a, int rows, __m256 *y) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int r = 0; r < rows; r++) y[r] = _mm256_setzero_ps();
    for (int g = 0; g < groups; g++, tile += 272) {
        const __m256 d = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)tile));
        const __m256i *words = (const __m256i *)(tile + 16);
        __m256i dots[MAX_ROWS];
        for (int r = 0; r < rows; r++) dots[r] = _mm256_setzero_si256();
        for (int k = 0; k < 8; k++) {
            const __m256i w = _mm256_loadu_si256(words + k), size = _mm256_abs_epi8(w);
            for (int r = 0; r < rows; r++) {
                const __m256i x = four_inputs(a.q + ((int64_t)r * groups + g) * GROUP, k);
                /* 2 · 127 · 127 just fits int16; a second pair would not, so widen at once. */
                const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, w));
                dots[r] = _mm256_add_epi32(dots[r], _mm256_madd_epi16(pairs, ones));
            }
        }
        for (int r = 0; r < rows; r++) {
            const __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(a.scale[r * groups + g]));
            y[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r]), scale, y[r]);
        }
    }
}

/* One tile for 1..8 rows. Each count is compiled on its own: sums of a known number of rows stay in registers. */
static void multiply_tile(const matrix *w, int tile, activations a, int rows, __m256 *y) {
    const uint8_t *p = w->tiles + (int64_t)tile * w->groups * TILE_BYTES[w->kind];
#define CASE(R) \
    case R: \
        if (w->kind == Q4_1) tile_q4_1(p, w->groups, a, R, y); \
        else tile_q8_0(p, w->groups, a, R, y); \
        break;
    switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
#undef CASE
}

#endif
