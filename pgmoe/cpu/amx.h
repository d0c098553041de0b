/* Products of bfloat16 matrices by AMX, for weights as they lie in a checkpoint.

   y (T, N) = x (T, K) times the transpose of w (N, K), plus a bias (N), all row-major, summed in float32 and
   rounded once.

   The weights are the left operand: 16 of their rows are a tile as they are, so they are never rearranged, and
   for few tokens reading them once is all that a product costs. The tokens are the right operand; 16 of them at
   a time are transposed into the order in which a tile wants them: pair of k after pair of k, 16 tokens each.

   What a token gets depends on its own row alone, neither on how many others there are nor on the threads.
   AMX takes numbers too small to be normal for zero, and gives none.

   Letters: T tokens, N outputs, K inputs, which is a multiple of STEP. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define WITH_AMX __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

/* SLAB: tokens of a dense product that are packed at a time, as many as stay in a cache while weights go by. */
enum { SIDE = 16, BLOCK = 2 * SIDE, STEP = BLOCK, LINE = 64, SLAB = 256 };

/* Numbers of which simple work is shared by threads: waking one takes as long as some ten thousand. */
enum { SHARED = 1 << 16 };

typedef struct {
    const uint16_t *w, *x, *bias; /* bias: NULL where there is none */
    const uint16_t *tail;         /* BLOCK rows: the last N % BLOCK of w, filled up; NULL where N is a multiple */
    uint16_t *y;
    const int *x_rows, *y_rows; /* where each token's row is in x and y; NULL: they follow each other */
    long tokens, n;
    uint32_t *packed; /* ceil(T / 16) x (K / 2) x 16 pairs */
} Product;

typedef struct {
    Product *products;
    long count, k;
    int gated;  /* x is (T, 2 K), of which silu(left half) * right half is taken */
    int shared; /* all products are of the same tokens, packed in one place */
    long taken; /* blocks that threads have taken; 0 before */
} Batch;

static inline long rounded_up(long tokens) { return (tokens + SIDE - 1) / SIDE * SIDE; }

/* The product of SLAB tokens from `first` on, or of what is left; x has one row after the other. */
static inline Product slab(const Product *p, long first, long k) {
    Product part = *p;
    part.x += first * k;
    if (p->y_rows == NULL) part.y += first * p->n;
    else part.y_rows += first;
    part.tokens = p->tokens - first < SLAB ? p->tokens - first : SLAB;
    return part;
}

/* out[i][j] = in[j][i], 16 x 16 numbers of 32 bits. */
static inline WITH_AMX void transpose(const __m512 in[SIDE], __m512 out[SIDE]) {
    __m512 a[SIDE], b[SIDE];
    for (int i = 0; i < 8; i++) {
        a[2 * i] = _mm512_unpacklo_ps(in[2 * i], in[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_ps(in[2 * i], in[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            __m512d low = (__m512d)a[4 * i + j], high = (__m512d)a[4 * i + j + 2];
            b[4 * i + 2 * j] = (__m512)_mm512_unpacklo_pd(low, high);
            b[4 * i + 2 * j + 1] = (__m512)_mm512_unpackhi_pd(low, high);
        }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            a[i + 8 * j] = _mm512_shuffle_f32x4(b[i + 8 * j], b[i + 8 * j + 4], 0x88);
            a[i + 8 * j + 4] = _mm512_shuffle_f32x4(b[i + 8 * j], b[i + 8 * j + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        out[i] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0x88);
        out[i + 8] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0xdd);
    }
}

/* exp(x) to one unit in the last place, by the polynomial of Sleef, with which torch computes; infinite where it is nearly,
   and never less than the smallest normal number, since others take the processor very long. */
static inline WITH_AMX __m512 exponential(__m512 x) {
    const float factors[] = {1.3930435525e-3f, 8.3333607763e-3f, 4.1666485369e-2f, 1.6666667163e-1f, 0.5f};
    x = _mm512_max_ps(_mm512_set1_ps(-87), _mm512_min_ps(_mm512_set1_ps(100), x)); /* keeps what is no number */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145751953125f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.428606765330187e-6f), r);
    __m512 y = _mm512_set1_ps(1.9852761761e-4f);
    for (int i = 0; i < 5; i++) y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(factors[i]));
    y = _mm512_add_ps(_mm512_fmadd_ps(y, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1));
    return _mm512_scalef_ps(y, n);
}

static inline WITH_AMX __m512 widened(__m256i bfloat16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16), 16));
}

/* silu(gate) * up of 16 numbers, both factors and the result rounded to bfloat16, as PyTorch does. */
static inline WITH_AMX __m256i gated(const uint16_t *gate, const uint16_t *up) {
    __m512 g = widened(_mm256_loadu_si256((const void *)gate)), u = widened(_mm256_loadu_si256((const void *)up));
    __m512 one = _mm512_set1_ps(1), minus = _mm512_sub_ps(_mm512_setzero_ps(), g);
    __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, exponential(minus)));
    silu = widened((__m256i)_mm512_cvtneps_pbh(silu));
    return (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(silu, u));
}

/* STEP numbers of one token, from k_at on. */
static inline WITH_AMX __m512 taken(const Batch *b, const Product *p, long token, long k_at) {
    long row = p->x_rows == NULL ? token : p->x_rows[token];
    if (!b->gated) return _mm512_loadu_ps(p->x + row * b->k + k_at);
    const uint16_t *gate = p->x + row * 2 * b->k + k_at, *up = gate + b->k;
    __m512i low = _mm512_castsi256_si512(gated(gate, up));
    return (__m512)_mm512_inserti64x4(low, gated(gate + SIDE, up + SIDE), 1);
}

/* One tile of a product's tokens: 16 of them (zeros where there are fewer) and STEP numbers of each. */
static WITH_AMX void pack_tile(const Batch *b, const Product *p, long tile) {
    long first = tile / (b->k / STEP) * SIDE, k_at = tile % (b->k / STEP) * STEP;
    __m512 rows[SIDE], columns[SIDE];
    for (long t = 0; t < SIDE; t++)
        rows[t] = first + t < p->tokens ? taken(b, p, first + t, k_at) : _mm512_setzero_ps();
    transpose(rows, columns);
    for (int i = 0; i < SIDE; i++) _mm512_storeu_ps(p->packed + tile * SIDE * SIDE + i * SIDE, columns[i]);
}

/* One output's sums of 16 tokens. */
static inline WITH_AMX __m512 with_bias(const float *sums, const uint16_t *bias, long output, long outputs) {
    __m512 sum = _mm512_load_ps(sums + output * SIDE);
    if (bias == NULL || output >= outputs) return sum;
    return _mm512_add_ps(sum, widened(_mm256_set1_epi16((short)bias[output])));
}

/* Round BLOCK sums of up to 16 tokens from `first` on, of which sums has the transpose, and store them. */
static inline WITH_AMX void store(const float *sums, const Product *p, long n_at, long first) {
    long n = p->n;
    __m512 in[SIDE], low[SIDE], high[SIDE];
    const uint16_t *bias = p->bias == NULL ? NULL : p->bias + n_at;
    long outputs = n - n_at < BLOCK ? n - n_at : BLOCK;
    __mmask32 there = outputs < BLOCK ? (1u << outputs) - 1 : ~0u;
    for (int i = 0; i < SIDE; i++) in[i] = with_bias(sums, bias, i, outputs);
    transpose(in, low);
    for (int i = 0; i < SIDE; i++) in[i] = with_bias(sums, bias, SIDE + i, outputs);
    transpose(in, high);
    for (long t = 0; t < SIDE && first + t < p->tokens; t++) {
        long row = p->y_rows == NULL ? first + t : p->y_rows[first + t];
        _mm512_mask_storeu_epi16(p->y + row * n + n_at, there, (__m512i)_mm512_cvtne2ps_pbh(high[t], low[t]));
    }
}

/* Ask for a pass's share of the next block of weights, a step's part of it. */
static inline WITH_AMX void prefetch(const uint16_t *next, long step, long pass, long passes) {
    const char *at = (const char *)next + step * BLOCK * LINE;
    for (long i = pass * BLOCK / passes; i < (pass + 1) * BLOCK / passes; i++)
        _mm_prefetch(at + i * LINE, _MM_HINT_T1);
}

/* Between storing numbers and loading a tile of them: GCC 12 does not know that tiles read memory. */
#define STORED __asm__ volatile("" ::: "memory")

/* Tiles 0 to 3 sum, 4 and 5 hold weights, 6 and 7 tokens. */
static WITH_AMX void configure_tiles(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes_of_row[16];
        uint8_t rows[16];
    } config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.bytes_of_row[i] = LINE;
        config.rows[i] = SIDE;
    }
    __asm__ volatile("" ::"r"(&config) : "memory"); /* GCC 12 thinks that only 8 bytes of it are read */
    _tile_loadconfig(&config);
}

static inline const uint16_t *weights(const Product *p, long n_at, long k) {
    return n_at + BLOCK > p->n ? p->tail : p->w + n_at * k;
}

static inline long take(Batch *b) { return __atomic_fetch_add(&b->taken, 1, __ATOMIC_RELAXED); }

/* BLOCK outputs of all tokens of a product, from the output n_at on; `next` are the weights of the thread's next block,
   or NULL. */
static WITH_AMX void multiply_block(const Batch *b, const Product *p, long n_at, const uint16_t *next) {
    long k = b->k;
    float sums[2][BLOCK * SIDE] __attribute__((aligned(LINE)));
    const uint16_t *w = weights(p, n_at, k);
    if (next == NULL) next = w;
    long passes = (p->tokens + BLOCK - 1) / BLOCK;
    for (long at = 0; at < p->tokens; at += BLOCK) {
        int two = at + SIDE < p->tokens;
        const uint32_t *x = p->packed + at * (k / 2);
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (long step = 0; step < k / STEP; step++) {
            prefetch(next, step, at / BLOCK, passes);
            _tile_loadd(4, w + step * STEP, k * 2);
            _tile_loadd(5, w + SIDE * k + step * STEP, k * 2);
            _tile_loadd(6, x + step * SIDE * SIDE, LINE);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
            if (!two) continue;
            _tile_loadd(7, x + SIDE * (k / 2) + step * SIDE * SIDE, LINE);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, sums[0], LINE);
        _tile_stored(1, sums[0] + SIDE * SIDE, LINE);
        store(sums[0], p, n_at, at);
        if (!two) continue;
        _tile_stored(2, sums[1], LINE);
        _tile_stored(3, sums[1] + SIDE * SIDE, LINE);
        store(sums[1], p, n_at, at + SIDE);
    }
}

static WITH_AMX void release_tiles(void) { _tile_release(); }

/* A block of BLOCK outputs, among those of all products of a batch. */
typedef struct {
    const Product *p;
    long before; /* blocks of the products before this one */
    long n_at;
} Place;

static inline long blocks_of(const Product *p) { return (p->n + BLOCK - 1) / BLOCK; }

/* From one block to a later one; whether there is one of that number. */
static inline int move_to(Place *place, long number, long blocks) {
    if (number >= blocks) return 0;
    for (; number - place->before >= blocks_of(place->p); place->p++) place->before += blocks_of(place->p);
    place->n_at = (number - place->before) * BLOCK;
    return 1;
}

/* All products of a batch; called by each thread of a parallel region, with tiles configured. A thread takes its next
   block before it computes one, so that it knows what to read ahead. */
static void multiply(Batch *b) {
    long blocks = 0;
    for (long i = 0; i < b->count; i++) blocks += blocks_of(b->products + i);
    for (long i = 0; i < (b->shared ? 1 : b->count); i++) {
        const Product *p = b->products + i;
        long tiles = rounded_up(p->tokens) / SIDE * (b->k / STEP);
#pragma omp for schedule(static) nowait
        for (long tile = 0; tile < tiles; tile++) pack_tile(b, p, tile);
    }
#pragma omp barrier
    Place place = {b->products, 0, 0};
    int more = move_to(&place, take(b), blocks);
    while (more) {
        Place now = place;
        more = move_to(&place, take(b), blocks);
        multiply_block(b, now.p, now.n_at, more ? weights(place.p, place.n_at, b->k) : NULL);
    }
#pragma omp barrier
}
