/* One decoding step, all layers in one call: the loop of shared/transformer.py in compiled form, for one new token each
 * of up to 8 sequences. That file is the reference to read; tests/shared/test_fused.py holds this one to it.
 *
 * Why it exists: at one token, the embedded model's products take about 4 ms, but the 700 small PyTorch operations
 * between them (norms, rotations, slices, attention over one query) took 9 ms more, almost all of it call overhead.
 *
 * One parallel region per step. A product's outputs are divided among the threads; where the next stage needs all of
 * them there is a barrier (about half a microsecond on two cores), five per layer. What is small and needed by everybody
 * (norms, rounding to int8, rotating the queries) every thread computes for itself: cheaper than sharing it.
 * Attention divides the positions, not the heads, among the threads: always even, whatever the number of heads; each
 * thread keeps the maximum and sum of its own softmax and the parts are merged afterwards.
 * Source: Dao et al., "Flash-Decoding for long-context inference", 2023.
 */
#include "kernels.h"

#ifdef _OPENMP
#include <omp.h>
#endif

enum { QKV, OUTPUT, GATE_UP, DOWN, MATRICES };

typedef struct {
    const float *attention_norm, *mlp_norm, *query_norm, *key_norm; /* the last two NULL unless the model has them */
    matrix w[MATRICES];
} layer;

typedef struct {
    const layer *layers;
    const float *norm, *cos, *sin; /* cos, sin: [context, head_dim], sin's first half negated */
    int32_t layer_count, hidden, heads, kv_heads, head_dim, mlp;
    float eps;
} model;

typedef struct { /* keys, values: [layers, kv_heads, capacity, head_dim]; position: of the new token */
    float *keys, *values;
    int64_t capacity, position;
} sequence;

typedef struct { /* W·x + B·(A·x), A: [rank, in], B: [out, rank]; rank 0: no update */
    const float *a, *b;
    int64_t rank;
} lora;

/* Buffers: the first block is shared, the second each thread's own. */
typedef struct {
    float *x, *qkv, *gate_up, *act, *low, *partial;
    float *in, *query, *score;
    activations rounded;
} buffers;

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Hand out `count` floats, on cache lines of their own: two threads writing one line would slow each other down. */
static float *take(float **cursor, int64_t count) {
    float *start = *cursor;
    *cursor += (count + 15) / 16 * 16;
    return start;
}

/* Place the buffers of thread `thread` in `base` and return where they end; with thread = threads, the total size. */
static float *place(const model *m, const sequence *s, int rows, const lora *adapter, int thread, int threads, float *base,
                    buffers *b) {
    const int64_t mixed = (int64_t)m->heads * m->head_dim, widest = most(most(m->hidden, mixed), m->mlp);
    int64_t rank = 0, longest = 0;
    for (int i = 0; adapter && i < m->layer_count * MATRICES; i++) rank = most(rank, adapter[i].rank);
    /* + threads: a smaller team than planned has longer shares, see decode_step */
    for (int r = 0; r < rows; r++) longest = most(longest, s[r].position + 1 + threads);
    b->qkv = take(&base, rows * (m->heads + 2 * m->kv_heads) * (int64_t)m->head_dim);
    b->gate_up = take(&base, rows * 2 * (int64_t)m->mlp);
    b->act = take(&base, rows * (int64_t)m->mlp);
    b->low = take(&base, rows * rank);
    b->partial = take(&base, threads * rows * (int64_t)m->heads * (m->head_dim + 2));
    for (int t = 0; t <= thread && t < threads; t++) {
        b->in = take(&base, rows * widest);
        b->query = take(&base, mixed / m->kv_heads);
        b->score = take(&base, m->heads / m->kv_heads * (longest / threads + 1));
        b->rounded.q = (int8_t *)take(&base, rows * widest / 4);
        b->rounded.scale = take(&base, rows * widest / GROUP);
        b->rounded.sum = take(&base, rows * widest / GROUP);
    }
    return base;
}

static float add_lanes(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* n is a multiple of 8 here and below: head_dim and the inputs of all matrices are. */
INLINE float dot(const float *a, const float *b, int n) {
    __m256 s = _mm256_setzero_ps();
    for (int i = 0; i < n; i += 8) s = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s);
    return add_lanes(s);
}

static void rms_norm(const float *x, const float *weight, int n, float eps, float *out) {
    const float inverse = 1.0f / sqrtf(dot(x, x, n) / (float)n + eps);
    for (int i = 0; i < n; i++) out[i] = weight[i] * (x[i] * inverse);
}

/* One query or key head: norm (qwen3), then rotation. out must not be x. */
static void place_head(const model *m, const float *restrict x, const float *weight, int64_t position, float *restrict out) {
    const int dim = m->head_dim, half = dim / 2;
    const float *cos = m->cos + position * dim, *sin = m->sin + position * dim;
    const float inverse = weight ? 1.0f / sqrtf(dot(x, x, dim) / (float)dim + m->eps) : 1.0f;
    float h[512]; /* head_dim is at most 512, shared/native/fused.py checks */
    for (int i = 0; i < dim; i++) h[i] = weight ? weight[i] * (x[i] * inverse) : x[i];
    for (int i = 0; i < half; i++) {
        out[i] = h[i] * cos[i] + h[i + half] * sin[i];
        out[i + half] = h[i + half] * cos[i + half] + h[i] * sin[i + half];
    }
}

/* This thread's share of one row's attention: positions [first, last) of every head. The last thread's share ends with
 * the new token, so it is the one that appends it to the cache. partial: [heads][head_dim + 2], maximum and sum last. */
static void attend(const model *m, const layer *l, int index, const sequence *s, const float *qkv, const buffers *b,
                   int thread, int threads, float *partial) {
    const int dim = m->head_dim, share = m->heads / m->kv_heads;
    const int64_t length = s->position + 1, first = length * thread / threads, last = length * (thread + 1) / threads;
    const int64_t span = last - first;
    const float scale = 1.0f / sqrtf((float)dim);
    for (int h = 0; h < m->kv_heads; h++) {
        const int64_t start = ((int64_t)index * m->kv_heads + h) * s->capacity * dim;
        float *keys = s->keys + start, *values = s->values + start;
        if (thread == threads - 1) {
            place_head(m, qkv + (m->heads + h) * dim, l->key_norm, s->position, keys + s->position * dim);
            memcpy(values + s->position * dim, qkv + (m->heads + m->kv_heads + h) * dim, (size_t)dim * sizeof(float));
        }
        keys += first * dim;
        values += first * dim;
        for (int g = 0; g < share; g++)
            place_head(m, qkv + (h * share + g) * dim, l->query_norm, s->position, b->query + g * dim);
        /* The query heads that share this key head go over it together, so the cache is read once. */
        for (int64_t j = 0; j < span; j++)
            for (int g = 0; g < share; g++)
                b->score[g * span + j] = scale * dot(b->query + g * dim, keys + j * dim, dim);
        for (int g = 0; g < share; g++) {
            float *p = b->score + g * span, *out = partial + (h * share + g) * (dim + 2), top = -1e30f, sum = 0;
            for (int64_t j = 0; j < span; j++) top = fmaxf(top, p[j]);
            for (int64_t j = 0; j < span; j++) p[j] = expf(p[j] - top);
            for (int64_t j = 0; j < span; j++) sum += p[j];
            memset(out, 0, (size_t)dim * sizeof(float));
            out[dim] = top;
            out[dim + 1] = sum;
        }
        for (int64_t j = 0; j < span; j += 4) { /* four positions per pass over the sums; a short last pass weighs 0 */
            const float *v[4];
            for (int i = 0; i < 4; i++) v[i] = values + (j + i < span ? j + i : j) * dim;
            for (int g = 0; g < share; g++) {
                float *out = partial + (h * share + g) * (dim + 2);
                __m256 p[4];
                for (int i = 0; i < 4; i++) p[i] = _mm256_set1_ps(j + i < span ? b->score[g * span + j + i] : 0);
                for (int d = 0; d < dim; d += 8) {
                    __m256 sum = _mm256_loadu_ps(out + d);
                    for (int i = 0; i < 4; i++) sum = _mm256_fmadd_ps(p[i], _mm256_loadu_ps(v[i] + d), sum);
                    _mm256_storeu_ps(out + d, sum);
                }
            }
        }
    }
}

/* Put the threads' parts of one row together: out [heads · head_dim]. */
static void merge(const model *m, const float *partial, int64_t stride, int threads, float *out) {
    const int dim = m->head_dim;
    for (int h = 0; h < m->heads; h++, out += dim) {
        const float *part = partial + h * (dim + 2);
        float top = -1e30f, total = 0;
        for (int t = 0; t < threads; t++) top = fmaxf(top, part[t * stride + dim]);
        for (int t = 0; t < threads; t++) total += expf(part[t * stride + dim] - top) * part[t * stride + dim + 1];
        memset(out, 0, (size_t)dim * sizeof(float));
        for (int t = 0; t < threads; t++) {
            const float share = expf(part[t * stride + dim] - top) / total;
            for (int i = 0; i < dim; i++) out[i] += share * part[t * stride + i];
        }
    }
}

/* b->in holds the rows to multiply. Round them, and start the low-rank update: low = A·in, ranks divided. */
static void prepare(const matrix *w, const lora *update, int rows, const buffers *b, int thread, int threads) {
    quantize(b->in, rows * w->groups, b->rounded);
    if (!update || !update->rank) return;
    const int width = w->groups * GROUP, rank = (int)update->rank;
    for (int k = rank * thread / threads; k < rank * (thread + 1) / threads; k++)
        for (int r = 0; r < rows; r++)
            b->low[r * rank + k] = dot(update->a + (int64_t)k * width, b->in + (int64_t)r * width, width);
#pragma omp barrier
}

/* Outputs of tiles [first, last), for all rows: y[r][i] = W·in + bias + B·low, or += where y is the residual. */
static void product(const matrix *w, const lora *update, int rows, const buffers *b, int64_t first, int64_t last, float *y,
                    int add) {
    const int rank = update ? (int)update->rank : 0;
    for (int64_t t = first; t < last; t++) {
        __m256 out[MAX_ROWS];
        multiply_tile(w, (int)t, b->rounded, rows, out);
        for (int r = 0; r < rows; r++) {
            float *target = y + (int64_t)r * w->outputs + t * TILE, low[TILE] = {0};
            __m256 v = out[r];
            if (w->bias) v = _mm256_add_ps(v, _mm256_loadu_ps(w->bias + t * TILE));
            for (int i = 0; rank && i < TILE; i++)
                for (int k = 0; k < rank; k++) low[i] += update->b[(t * TILE + i) * rank + k] * b->low[r * rank + k];
            if (rank) v = _mm256_add_ps(v, _mm256_loadu_ps(low));
            if (add) v = _mm256_add_ps(v, _mm256_loadu_ps(target));
            _mm256_storeu_ps(target, v);
        }
    }
}

static void run_layer(const model *m, int index, const lora *update, const sequence *s, int rows, const buffers *b, int thread,
                      int threads) {
    const layer *l = m->layers + index;
    const int64_t hidden = m->hidden, mlp = m->mlp, mixed = (int64_t)m->heads * m->head_dim;
    const int64_t qkv = l->w[QKV].outputs, part = rows * (int64_t)m->heads * (m->head_dim + 2);
#define SHARE(outputs) (outputs) / TILE * thread / threads, (outputs) / TILE *(thread + 1) / threads
#define UPDATE(which) (update ? update + which : NULL)

    for (int r = 0; r < rows; r++) rms_norm(b->x + r * hidden, l->attention_norm, m->hidden, m->eps, b->in + r * hidden);
    prepare(&l->w[QKV], UPDATE(QKV), rows, b, thread, threads);
    product(&l->w[QKV], UPDATE(QKV), rows, b, SHARE(qkv), b->qkv, 0);
#pragma omp barrier
    for (int r = 0; r < rows; r++)
        attend(m, l, index, s + r, b->qkv + r * qkv, b, thread, threads, b->partial + thread * part + r * part / rows);
#pragma omp barrier
    for (int r = 0; r < rows; r++) merge(m, b->partial + r * part / rows, part, threads, b->in + r * mixed);
    prepare(&l->w[OUTPUT], UPDATE(OUTPUT), rows, b, thread, threads);
    product(&l->w[OUTPUT], UPDATE(OUTPUT), rows, b, SHARE(hidden), b->x, 1);
#pragma omp barrier
    for (int r = 0; r < rows; r++) rms_norm(b->x + r * hidden, l->mlp_norm, m->hidden, m->eps, b->in + r * hidden);
    prepare(&l->w[GATE_UP], UPDATE(GATE_UP), rows, b, thread, threads);
    /* The same share of gate and of up, so that SwiGLU needs no barrier before it. */
    const int64_t first = mlp / TILE * thread / threads, last = mlp / TILE * (thread + 1) / threads, up = mlp / TILE;
    product(&l->w[GATE_UP], UPDATE(GATE_UP), rows, b, first, last, b->gate_up, 0);
    product(&l->w[GATE_UP], UPDATE(GATE_UP), rows, b, up + first, up + last, b->gate_up, 0);
    for (int r = 0; r < rows; r++) {
        const float *gate = b->gate_up + r * 2 * mlp, *ups = gate + mlp;
        float *restrict act = b->act + r * mlp;
        /* exp(80) is as good as infinity here, and safe under -ffast-math. */
        for (int64_t i = first * TILE; i < last * TILE; i++) act[i] = gate[i] / (1.0f + expf(fminf(-gate[i], 80.0f))) * ups[i];
    }
#pragma omp barrier
    memcpy(b->in, b->act, (size_t)(rows * mlp) * sizeof(float));
    prepare(&l->w[DOWN], UPDATE(DOWN), rows, b, thread, threads);
    product(&l->w[DOWN], UPDATE(DOWN), rows, b, SHARE(hidden), b->x, 1);
#pragma omp barrier
}

/* Floats of workspace that decode_step needs for these sequences. */
int64_t decode_workspace(const model *m, const lora *adapter, const sequence *s, int rows, int threads) {
    buffers b;
    float *const nothing = (float *)64; /* only distances matter */
    return place(m, s, rows, adapter, threads, threads, nothing, &b) - nothing;
}

/* x: [rows, hidden], embeddings in, final normalised hidden states out. adapter: [layers][4] or NULL.
 * The caches must have room; the caller advances their lengths. */
void decode_step(const model *m, const lora *adapter, const sequence *s, int rows, int threads, float *x, float *workspace) {
#pragma omp parallel num_threads(threads)
    {
        int thread = 0, team = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num();
        team = omp_get_num_threads(); /* the runtime may give fewer than asked for */
#endif
        buffers b;
        place(m, s, rows, adapter, thread, team, workspace, &b);
        b.x = x;
        for (int i = 0; i < m->layer_count; i++)
            run_layer(m, i, adapter ? adapter + i * MATRICES : NULL, s, rows, &b, thread, team);
        for (int r = thread; r < rows; r += team) { /* in place is fine: the sum is taken before the first write */
            float *row = x + (int64_t)r * m->hidden;
            rms_norm(row, m->norm, m->hidden, m->eps, row);
        }
    }
    (void)threads;
}
