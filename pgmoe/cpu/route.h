/* A router's choice: the product with its matrix, softmax over the experts, and the most probable ones, those of the
   lower number first where they are equal. */

enum { MOST_EXPERTS = 1024 };

typedef struct {
    long k;
    int normalises; /* whether the weights of what is chosen add up to 1 */
    float *weights; /* (T, k) */
    int64_t *ids;   /* (T, k) */
} Choice;

static inline __mmask16 up_to(long count) { return count < SIDE ? (__mmask16)((1u << count) - 1) : (__mmask16)~0u; }

/* Each logit's exp(x - greatest x), and their sum; x as float32 numbers, too. */
static WITH_AMX float likelihoods(const uint16_t *logits, long experts, float *x, float *likely) {
    __m512 most = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    for (long e = 0; e < experts; e += SIDE) {
        __mmask16 there = up_to(experts - e);
        __m512 some = widened(_mm256_maskz_loadu_epi16(there, logits + e));
        _mm512_storeu_ps(x + e, some);
        most = _mm512_mask_max_ps(most, there, most, some);
    }
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (long e = 0; e < experts; e += SIDE) {
        __m512 y = exponential(_mm512_sub_ps(_mm512_loadu_ps(x + e), most));
        _mm512_storeu_ps(likely + e, y);
        total = _mm512_mask_add_ps(total, up_to(experts - e), total, y);
    }
    return _mm512_reduce_add_ps(total);
}

/* One token's. Where logits are no numbers, the experts are distinct all the same. */
static void choose(const uint16_t *logits, long experts, const Choice *c, long token) {
    float x[MOST_EXPERTS + SIDE], likely[MOST_EXPERTS + SIDE], *weights = c->weights + token * c->k;
    int64_t *ids = c->ids + token * c->k;
    uint8_t taken[MOST_EXPERTS] = {0};
    float total = likelihoods(logits + token * experts, experts, x, likely), chosen = 0;
    for (long i = 0; i < c->k; i++) {
        long best = -1;
        for (long e = 0; e < experts; e++)
            if (!taken[e] && (best < 0 || x[e] > x[best])) best = e;
        taken[best] = 1;
        ids[i] = best, weights[i] = likely[best] / total;
        chosen += weights[i];
    }
    for (long i = 0; c->normalises && i < c->k; i++) weights[i] /= chosen;
}

static void route(const Product *product, long k, const Choice *c, int threads) {
    for (long first = 0; first < product->tokens; first += SLAB) {
        Product part = slab(product, first, k);
        Batch batch = {&part, 1, k, 0, 0, 0};
#pragma omp parallel num_threads(threads)
        {
            configure_tiles();
            multiply(&batch);
            release_tiles();
#pragma omp for schedule(static)
            for (long token = 0; token < part.tokens; token++) choose(product->y, part.n, c, first + token);
        }
    }
}
