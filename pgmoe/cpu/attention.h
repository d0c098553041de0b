/* Attention over blocks by AMX, for keys and values as they lie in their pool.

   A tile of up to 16 query rows (some tokens of one sequence, times the heads that share a head of keys) goes
   over its keys 32 at a time, with a softmax that is corrected as it goes (Milakov and Gimelshein 2018; FlashAttention,
   Dao et al. 2022). Keys are the left operand of the scores: 16 of them are a tile as they are. Values are the
   right operand of the sums, for which two keys' are interleaved.

   Keys are taken from positions that are multiples of 32, whatever a token sees of them, and numbers that it does not
   see change nothing, to the bit: so what a token gets depends on its own row and on what it sees alone. (A value that is
   no number is, for tokens before it in the same tile: nothing times it is no number either.) Threads share out tiles and
   heads of keys, so a lone token has no more of them than heads.

   Letters: T tokens, Q query heads, H heads of keys and values, D width of keys (a multiple of STEP), V of values
   (a multiple of SIDE); P places of the pool. */

enum { MOST_WIDTH = 256, KEYS = 2 * SIDE };

typedef struct {
    const uint16_t *queries, *keys, *values; /* (T, Q, D) by strides; (P, H, D); (P, H, V) */
    long token_stride, head_stride;
    uint16_t *out;      /* (T, Q, V) */
    const float *sinks; /* (Q), or NULL: a score of each head that gives nothing */
    const int32_t *blocks;
    const int32_t *spans; /* (T, 2): first position that a token sees, and the end of those */
    float scale;
    long heads, groups, width, value_width, block_tokens;
} Attention;

/* Consecutive tokens of a sequence: row of the first, how many, where the sequence's blocks start, the first position
   that one of them sees, and the end of those. */
typedef struct {
    int32_t row, tokens, table, first, end;
} AttentionTile;

/* One tile and one head of keys on the way. */
typedef struct {
    uint32_t q[MOST_WIDTH / STEP * SIDE * SIDE]; /* as products want their tokens */
    uint32_t v[MOST_WIDTH / SIDE * SIDE * SIDE]; /* pairs of keys, SIDE values of each */
    uint16_t p[SIDE * KEYS];
    float scores[KEYS * SIDE], sums[SIDE * MOST_WIDTH], parts[2][SIDE * SIDE], scales[SIDE];
    __m512 most, total;
    __m512i firsts, ends;
    const uint16_t *rows[SIDE];
    long count;
} __attribute__((aligned(LINE))) AttentionState;

static inline const uint16_t *kept(const Attention *a, const AttentionTile *t, const uint16_t *pool, long width,
                                   long position, long head) {
    long place = a->blocks[t->table + position / a->block_tokens] * a->block_tokens + position % a->block_tokens;
    return pool + (place * a->heads + head) * width;
}

/* SIDE rows from row `at` of the tile on: token after token, and of each its heads. */
static WITH_AMX void begin_rows(const Attention *a, const AttentionTile *t, long head, long at, AttentionState *s) {
    int32_t firsts[SIDE] = {0}, ends[SIDE] = {0};
    float sinks[SIDE];
    s->count = t->tokens * a->groups - at < SIDE ? t->tokens * a->groups - at : SIDE;
    for (long i = 0; i < SIDE; i++) {
        long token = t->row + (at + i) / a->groups, of_head = head * a->groups + (at + i) % a->groups;
        int there = i < s->count;
        s->rows[i] = there ? a->queries + token * a->token_stride + of_head * a->head_stride : NULL;
        sinks[i] = there && a->sinks != NULL ? a->sinks[of_head] : -INFINITY;
        if (there) firsts[i] = a->spans[2 * token], ends[i] = a->spans[2 * token + 1];
    }
    s->firsts = _mm512_loadu_si512(firsts), s->ends = _mm512_loadu_si512(ends);
    s->most = _mm512_loadu_ps(sinks);
    s->total = _mm512_set1_ps(a->sinks == NULL ? 0 : 1);
    memset(s->sums, 0, sizeof(float) * SIDE * (size_t)a->value_width);
    for (long step = 0; step < a->width / STEP; step++) {
        __m512 rows[SIDE], columns[SIDE];
        for (int i = 0; i < SIDE; i++)
            rows[i] = i < s->count ? _mm512_loadu_ps(s->rows[i] + step * STEP) : _mm512_setzero_ps();
        transpose(rows, columns);
        for (int i = 0; i < SIDE; i++) _mm512_store_ps(s->q + (step * SIDE + i) * SIDE, columns[i]);
    }
}

/* Scores of KEYS keys from `position` on: (KEYS, SIDE). */
static WITH_AMX void score(const Attention *a, const AttentionTile *t, long head, long position, AttentionState *s) {
    const uint16_t *low = kept(a, t, a->keys, a->width, position, head), *high = low;
    if (position + SIDE < t->end) high = kept(a, t, a->keys, a->width, position + SIDE, head);
    long stride = a->heads * a->width * 2;
    _tile_zero(0);
    _tile_zero(1);
    for (long step = 0; step < a->width / STEP; step++) {
        _tile_loadd(6, s->q + step * SIDE * SIDE, LINE);
        _tile_loadd(4, low + step * STEP, stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, high + step * STEP, stride);
        _tile_dpbf16ps(1, 5, 6);
    }
    _tile_stored(0, s->scores, LINE);
    _tile_stored(1, s->scores + SIDE * SIDE, LINE);
}

/* Of each row what its scores weigh, rounded, in p (SIDE, KEYS), and by what earlier sums shrink. */
static WITH_AMX void weigh(const Attention *a, long position, AttentionState *s) {
    const __m512 nothing = _mm512_set1_ps(-INFINITY), scale = _mm512_set1_ps(a->scale);
    __mmask16 seen[KEYS];
    __m512 most = s->most, weights[KEYS], rows[2][SIDE];
    for (int i = 0; i < KEYS; i++) {
        __m512i at = _mm512_set1_epi32((int)position + i);
        seen[i] = _mm512_cmple_epi32_mask(s->firsts, at) & _mm512_cmplt_epi32_mask(at, s->ends);
        __m512 scaled = _mm512_mul_ps(_mm512_load_ps(s->scores + i * SIDE), scale);
        weights[i] = _mm512_mask_mov_ps(nothing, seen[i], scaled);
        most = _mm512_max_ps(most, weights[i]);
    }
    __mmask16 any = _mm512_cmp_ps_mask(most, nothing, _CMP_NEQ_UQ);
    __m512 base = _mm512_maskz_mov_ps(any, most);
    __m512 shrink = exponential(_mm512_sub_ps(s->most, base)), total = _mm512_mul_ps(s->total, shrink);
    for (int i = 0; i < KEYS; i++) {
        weights[i] = _mm512_maskz_mov_ps(seen[i], exponential(_mm512_sub_ps(weights[i], base)));
        total = _mm512_add_ps(total, weights[i]);
    }
    s->most = most, s->total = total;
    _mm512_store_ps(s->scales, shrink);
    transpose(weights, rows[0]);
    transpose(weights + SIDE, rows[1]);
    for (int i = 0; i < SIDE; i++)
        _mm512_store_si512(s->p + i * KEYS, (__m512i)_mm512_cvtne2ps_pbh(rows[1][i], rows[0][i]));
}

/* Values of KEYS keys from `position` on, pair after pair; zeros past the end, where anything may lie. */
static WITH_AMX void pair_values(const Attention *a, const AttentionTile *t, long head, long position,
                                 AttentionState *s) {
    long stride = a->heads * a->value_width;
    for (long half = 0; half < KEYS; half += SIDE) {
        long there = t->end - position - half;
        const uint16_t *first = a->values; /* of nothing, where nothing is there */
        if (there > 0) first = kept(a, t, a->values, a->value_width, position + half, head);
        for (long key = 0; key < SIDE; key += 2) {
            const uint16_t *even = first + key * stride, *odd = even + stride;
            uint32_t *pair = s->v + (half + key) / 2 * SIDE;
            for (long v = 0; v < a->value_width; v += SIDE) {
                __m512i low = _mm512_setzero_si512(), high = low;
                if (key < there) low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(even + v)));
                if (key + 1 < there) high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(odd + v)));
                _mm512_store_si512(pair + v * SIDE, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            }
        }
    }
}

/* SIDE values of each row: what was summed before, shrunk, and the new part. */
static inline WITH_AMX void add_part(const Attention *a, AttentionState *s, const float *part, long v) {
    for (long i = 0; i < s->count; i++) {
        float *sum = s->sums + i * a->value_width + v;
        __m512 shrunk = _mm512_mul_ps(_mm512_load_ps(sum), _mm512_set1_ps(s->scales[i]));
        _mm512_store_ps(sum, _mm512_add_ps(shrunk, _mm512_load_ps(part + i * SIDE)));
    }
}

/* Two products at a time, so that neither waits for the other. */
static WITH_AMX void add_values(const Attention *a, AttentionState *s) {
    _tile_loadd(4, s->p, LINE);
    for (long v = 0; v < a->value_width; v += 2 * SIDE) {
        int two = v + SIDE < a->value_width;
        _tile_loadd(6, s->v + v * SIDE, LINE);
        if (two) _tile_loadd(7, s->v + (v + SIDE) * SIDE, LINE);
        _tile_zero(2);
        _tile_dpbf16ps(2, 4, 6);
        _tile_zero(3);
        if (two) _tile_dpbf16ps(3, 4, 7);
        _tile_stored(2, s->parts[0], LINE);
        _tile_stored(3, s->parts[1], LINE);
        add_part(a, s, s->parts[0], v);
        if (two) add_part(a, s, s->parts[1], v + SIDE);
    }
}

static WITH_AMX void finish_rows(const Attention *a, const AttentionTile *t, long head, long at, AttentionState *s) {
    float totals[SIDE];
    _mm512_storeu_ps(totals, s->total);
    for (long i = 0; i < s->count; i++) {
        long token = t->row + (at + i) / a->groups, of_head = head * a->groups + (at + i) % a->groups;
        uint16_t *out = a->out + (token * a->heads * a->groups + of_head) * a->value_width;
        for (long v = 0; v < a->value_width; v += SIDE) {
            __m512 mean = _mm512_div_ps(_mm512_load_ps(s->sums + i * a->value_width + v), _mm512_set1_ps(totals[i]));
            _mm256_storeu_si256((void *)(out + v), (__m256i)_mm512_cvtneps_pbh(mean));
        }
    }
}

static WITH_AMX void attend(const Attention *a, const AttentionTile *tiles, long count, int threads) {
#pragma omp parallel num_threads(threads)
    {
        AttentionState state;
        configure_tiles();
#pragma omp for schedule(dynamic, 1)
        for (long item = 0; item < count * a->heads; item++) {
            const AttentionTile *t = tiles + item / a->heads;
            long head = item % a->heads;
            for (long at = 0; at < t->tokens * a->groups; at += SIDE) {
                begin_rows(a, t, head, at, &state);
                STORED;
                for (long position = t->first / KEYS * KEYS; position < t->end; position += KEYS) {
                    score(a, t, head, position, &state);
                    weigh(a, position, &state);
                    pair_values(a, t, head, position, &state);
                    STORED;
                    add_values(a, &state);
                }
                finish_rows(a, t, head, at, &state);
            }
        }
        release_tiles();
    }
}
