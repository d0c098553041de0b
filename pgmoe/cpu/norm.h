/* Root mean square norms: y (T, D) = w * x / sqrt(mean(x^2) + epsilon), the quotient rounded to bfloat16 before it is
   multiplied by the weight (D), as transformers' models do. D is a multiple of SIDE.

   Where something is added to x before, the sum is rounded to bfloat16. */

static inline WITH_AMX __m512 sixteen(const uint16_t *at) { return widened(_mm256_loadu_si256((const void *)at)); }

static WITH_AMX void normalise(const uint16_t *x, const uint16_t *w, uint16_t *y, long d, float epsilon) {
    __m512 squares = _mm512_setzero_ps();
    for (long i = 0; i < d; i += SIDE) squares = _mm512_fmadd_ps(sixteen(x + i), sixteen(x + i), squares);
    __m512 variance = _mm512_set1_ps(_mm512_reduce_add_ps(squares) / (float)d + epsilon);
    __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1), _mm512_sqrt_ps(variance));
    for (long i = 0; i < d; i += SIDE) {
        __m512 normal = widened((__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(sixteen(x + i), inverse)));
        __m256i weighted = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(normal, sixteen(w + i)));
        _mm256_storeu_si256((void *)(y + i), weighted);
    }
}

static WITH_AMX void add(const uint16_t *x, const uint16_t *added, uint16_t *sum, long d) {
    for (long i = 0; i < d; i += SIDE) {
        __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps(sixteen(x + i), sixteen(added + i)));
        _mm256_storeu_si256((void *)(sum + i), rounded);
    }
}

/* `added` and `sum` may be NULL, both. */
static void normalise_all(const uint16_t *x, const uint16_t *added, uint16_t *sum, const uint16_t *w, uint16_t *y,
                          long tokens, long d, float epsilon, int threads) {
#pragma omp parallel for num_threads(threads) if (tokens * d > SHARED)
    for (long t = 0; t < tokens; t++) {
        if (added != NULL) add(x + t * d, added + t * d, sum + t * d, d);
        normalise((added == NULL ? x : sum) + t * d, w, y + t * d, d, epsilon);
    }
}

static void add_all(const uint16_t *x, const uint16_t *added, uint16_t *sum, long tokens, long d, int threads) {
#pragma omp parallel for num_threads(threads) if (tokens * d > SHARED)
    for (long t = 0; t < tokens; t++) add(x + t * d, added + t * d, sum + t * d, d);
}
