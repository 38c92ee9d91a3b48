/* Quantised matrix × a few vectors, for decoding on x86 CPUs with AVX2.
 *
 * Decoding one token reads every weight once and does two operations with it, so the time goes into moving and unpacking
 * weights. PyTorch's packed int4 kernel spends ten milliseconds a token on the embedded model's matrices on two Zen 3
 * cores; this one about five, by llama.cpp's method (ggml_vec_dot_q4_1_q8_1): round the activations to int8 in groups
 * of 32 as well, multiply 32 pairs of bytes with two instructions, and scale once per group.
 *
 *   y[n] = Σ_g  d[n,g]·dx[g]·Σ_i q[n,g,i]·xq[g,i]  +  m[n,g]·dx[g]·Σ_i xq[g,i]
 *
 * Block layouts: shared/quantization.py. Compiled on first use by shared/native/__init__.py.
 */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

typedef struct { uint16_t d, m; uint8_t q[16]; } q4_1;
typedef struct { uint16_t d; int8_t q[32]; } q8_0;

/* Activations of one row: int8 values, the scale of each group, and scale × sum (what a group's minimum multiplies). */
static void quantize_row(const float *x, int groups, int8_t *xq, float *scale, float *sum) {
    for (int g = 0; g < groups; g++, x += 32, xq += 32) {
        float top = 0;
        for (int i = 0; i < 32; i++) top = fmaxf(top, fabsf(x[i]));
        const float inverse = top > 0 ? 127.0f / top : 0;
        int total = 0;
        for (int i = 0; i < 32; i++) {
            const int v = (int)rintf(x[i] * inverse);
            xq[i] = (int8_t)v;
            total += v;
        }
        scale[g] = top / 127.0f;
        sum[g] = scale[g] * (float)total;
    }
}

static inline float add_lanes(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* Σ of 32 products unsigned × signed byte, as 8 partial int32. 15·127·2 and 127·127·2 fit int16, so nothing saturates. */
static inline __m256 dot_bytes(__m256i u, __m256i s) {
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
}

/* x: [rows, 32·groups] float, y: [rows, n] float. xq, scale, sum: scratch of rows·32·groups, rows·groups, rows·groups. */
void matvec_q4_1(const q4_1 *w, const float *x, float *y, int n, int groups, int rows, int8_t *xq, float *scale,
                 float *sum) {
    for (int r = 0; r < rows; r++)
        quantize_row(x + (int64_t)r * groups * 32, groups, xq + (int64_t)r * groups * 32, scale + r * groups, sum + r * groups);
    const __m256i low_nibble = _mm256_set1_epi8(15);
#pragma omp parallel for schedule(static)
    for (int i = 0; i < n; i++) {
        const q4_1 *block = w + (int64_t)i * groups;
        for (int r = 0; r < rows; r++) {
            const int8_t *xr = xq + (int64_t)r * groups * 32;
            const float *dx = scale + r * groups, *sx = sum + r * groups;
            __m256 products = _mm256_setzero_ps();
            float minima = 0;
            for (int g = 0; g < groups; g++) {
                const __m128i packed = _mm_loadu_si128((const __m128i *)block[g].q);
                const __m256i q = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed), low_nibble);
                const __m256i v = _mm256_loadu_si256((const __m256i *)(xr + g * 32));
                products = _mm256_fmadd_ps(dot_bytes(q, v), _mm256_set1_ps(_cvtsh_ss(block[g].d) * dx[g]), products);
                minima += _cvtsh_ss(block[g].m) * sx[g];
            }
            y[(int64_t)r * n + i] = add_lanes(products) + minima;
        }
    }
}

void matvec_q8_0(const q8_0 *w, const float *x, float *y, int n, int groups, int rows, int8_t *xq, float *scale,
                 float *sum) {
    for (int r = 0; r < rows; r++)
        quantize_row(x + (int64_t)r * groups * 32, groups, xq + (int64_t)r * groups * 32, scale + r * groups, sum + r * groups);
#pragma omp parallel for schedule(static)
    for (int i = 0; i < n; i++) {
        const q8_0 *block = w + (int64_t)i * groups;
        for (int r = 0; r < rows; r++) {
            const int8_t *xr = xq + (int64_t)r * groups * 32;
            const float *dx = scale + r * groups;
            __m256 products = _mm256_setzero_ps();
            for (int g = 0; g < groups; g++) {
                const __m256i q = _mm256_loadu_si256((const __m256i *)block[g].q);
                const __m256i v = _mm256_loadu_si256((const __m256i *)(xr + g * 32));
                /* unsigned × signed: |q| × (v with the sign of q) */
                products = _mm256_fmadd_ps(dot_bytes(_mm256_abs_epi8(q), _mm256_sign_epi8(v, q)),
                                           _mm256_set1_ps(_cvtsh_ss(block[g].d) * dx[g]), products);
            }
            y[(int64_t)r * n + i] = add_lanes(products);
        }
    }
}
