/* The outputs of K experts for each of N tokens, weighted and added up. Each product and each sum is rounded
   to bfloat16; the experts are added in ascending order. y (N * K, D) has the choice (n, k) in row n * K + k;
   ids at or above num_experts have none. */
typedef struct {
    const int64_t *ids;
    const float *weights;
    const uint16_t *y;
    uint16_t *out;
    long n, k, d;
    int64_t num_experts;
} Sum;

enum { MOST_CHOICES = 64 };

static WITH_AMX void add_up(const Sum *s, long token) {
    long order[MOST_CHOICES], used = 0;
    const int64_t *ids = s->ids + token * s->k;
    for (long k = 0; k < s->k; k++) {
        if (ids[k] >= s->num_experts) continue;
        long at = used++;
        for (; at > 0 && ids[order[at - 1]] > ids[k]; at--) order[at] = order[at - 1];
        order[at] = k;
    }
    for (long d = 0; d < s->d; d += SIDE) {
        __m512 sum = _mm512_setzero_ps();
        for (long i = 0; i < used; i++) {
            long row = token * s->k + order[i];
            __m512 y = widened(_mm256_loadu_si256((const void *)(s->y + row * s->d + d)));
            y = _mm512_mul_ps(y, _mm512_set1_ps(s->weights[row]));
            sum = _mm512_add_ps(sum, widened((__m256i)_mm512_cvtneps_pbh(y)));
            sum = widened((__m256i)_mm512_cvtneps_pbh(sum));
        }
        _mm256_storeu_si256((void *)(s->out + token * s->d + d), (__m256i)_mm512_cvtneps_pbh(sum));
    }
}

static void add_up_all(const Sum *s, int threads) {
#pragma omp parallel for num_threads(threads) if (s->n * s->k * s->d > SHARED)
    for (long token = 0; token < s->n; token++) add_up(s, token);
}
