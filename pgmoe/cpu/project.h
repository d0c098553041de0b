/* Queries, keys and values of tokens: three products, then norms (of heads, or of all heads of a token together) and rotary
   embedding (Su et al., RoFormer, arXiv 2104.09864), which turns the halves of a head against each other. Each of its
   products and its sum is rounded to bfloat16, as transformers' models do. */

enum { PARTS = 3 };

typedef struct {
    const uint16_t *cosines, *sines; /* (T, D) */
    long width;                      /* D, of a head: a multiple of BLOCK */
} Rotation;

/* What follows a product. */
typedef struct {
    const uint16_t *norm; /* weights, or NULL */
    long norm_width;      /* numbers that are normalised together */
    float epsilon;
    int rotates;
} Finish;

static inline WITH_AMX __m512 rounded(__m512 x) { return widened((__m256i)_mm512_cvtneps_pbh(x)); }

static inline WITH_AMX void put(uint16_t *at, __m512 x) {
    _mm256_storeu_si256((void *)at, (__m256i)_mm512_cvtneps_pbh(x));
}

/* One head of one token, in place. */
static WITH_AMX void rotate(uint16_t *x, const uint16_t *cosines, const uint16_t *sines, long width) {
    for (long i = 0, j = width / 2; j < width; i += SIDE, j += SIDE) {
        __m512 low = sixteen(x + i), high = sixteen(x + j);
        __m512 from_high = _mm512_mul_ps(high, sixteen(sines + i)), from_low = _mm512_mul_ps(low, sixteen(sines + j));
        low = rounded(_mm512_mul_ps(low, sixteen(cosines + i)));
        high = rounded(_mm512_mul_ps(high, sixteen(cosines + j)));
        put(x + i, _mm512_sub_ps(low, rounded(from_high)));
        put(x + j, _mm512_add_ps(high, rounded(from_low)));
    }
}

static WITH_AMX void finish(const Product *p, const Finish *f, const Rotation *r, long token) {
    uint16_t *row = p->y + (p->y_rows == NULL ? token : p->y_rows[token]) * p->n;
    if (f->norm != NULL)
        for (long i = 0; i < p->n; i += f->norm_width) normalise(row + i, f->norm, row + i, f->norm_width, f->epsilon);
    if (!f->rotates) return;
    const uint16_t *cosines = r->cosines + token * r->width, *sines = r->sines + token * r->width;
    for (long i = 0; i < p->n; i += r->width) rotate(row + i, cosines, sines, r->width);
}

static void project_slab(Batch *b, const Finish *finishes, const Rotation *r, int threads) {
    long tokens = b->products->tokens;
#pragma omp parallel num_threads(threads)
    {
        configure_tiles();
        multiply(b);
        release_tiles();
#pragma omp for schedule(static, 1)
        for (long i = 0; i < PARTS * tokens; i++)
            finish(b->products + i / tokens, finishes + i / tokens, r, i % tokens);
    }
}

static void project(const Product *products, long k, const Finish *finishes, const Rotation *r, int threads) {
    for (long first = 0; first < products->tokens; first += SLAB) {
        Product parts[PARTS];
        for (int i = 0; i < PARTS; i++) parts[i] = slab(products + i, first, k);
        Batch batch = {parts, PARTS, k, 0, 1, 0};
        Rotation rotation = {r->cosines + first * r->width, r->sines + first * r->width, r->width};
        project_slab(&batch, finishes, &rotation, threads);
    }
}
