/* Quantised matrix × a few vectors, on its own: the vocabulary product, and prefill where no dense copy is kept.
 * Layout and method: kernels.h. Bound by shared/native/__init__.py.
 */
#include "kernels.h"

/* y[r][n] = Σ_i w[n][i]·x[r][i], x: [rows, 32·groups], y: [rows, outputs]; the bias is left to the caller.
 * q, scale, sum: scratch of rows·32·groups bytes, rows·groups and rows·groups floats. */
void matvec(const matrix *w, const float *x, float *y, int rows, int threads, int8_t *q, float *scale, float *sum) {
    const int groups = w->groups, tiles = (w->outputs + TILE - 1) / TILE;
    const activations all = {q, scale, sum};
    quantize(x, rows * groups, all);
    (void)threads; /* unused where the compiler has no OpenMP */
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int t = 0; t < tiles; t++) {
        const int count = w->outputs - t * TILE < TILE ? w->outputs - t * TILE : TILE;
        for (int first = 0; first < rows; first += MAX_ROWS) {
            const int block = rows - first < MAX_ROWS ? rows - first : MAX_ROWS;
            const int64_t skip = (int64_t)first * groups;
            const activations a = {q + skip * GROUP, scale + skip, sum + skip};
            __m256 out[MAX_ROWS];
            multiply_tile(w, t, a, block, out);
            for (int r = 0; r < block; r++)
                memcpy(y + (int64_t)(first + r) * w->outputs + t * TILE, &out[r], (size_t)count * sizeof(float));
        }
    }
}
