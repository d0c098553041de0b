/* What pgmoe computes on CPUs by itself, for its faces in Python, which `methods` names. Matrices are given
   by their addresses; the faces see to it that they are what is wanted here. In products, numbers too small to be normal
   count as zero, as AMX has it. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) || __GNUC__ >= 12)
#include "amx.h"
#include "attention.h"
#include "norm.h"
#include "project.h"
#include "route.h"
#include "sum.h"
#include <sys/syscall.h>
#include <unistd.h>

enum { VERSION = 3 }; /* another one where arguments change */

/* One batch after another, each of which may take what the one before it gave. */
static void multiply_in_turn(Batch *batches, int count, int threads) {
#pragma omp parallel num_threads(threads)
    {
        configure_tiles();
        for (int i = 0; i < count; i++) multiply(batches + i);
        release_tiles();
    }
}

/* Whether this processor has what is needed and the system lets a process use it; asking allows it. */
static int may_use_amx(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18, TILES = 1 << 24, BFLOAT16 = 1 << 22 };
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512dq")) return 0;
    unsigned a = 7, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return (d & TILES) && (d & BFLOAT16) && !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
}
#else
#error "no kernels for this processor"
#endif

static PyObject *supported(PyObject *module, PyObject *nothing) {
    (void)module, (void)nothing;
    return PyBool_FromLong(may_use_amx());
}

static void *address(unsigned long long number) { return (void *)(uintptr_t)number; }

/* Where outputs are no multiple of BLOCK, the last ones' weights, filled up: after the packed tokens. */
static void fill_tail(Product *p, long k) {
    uint16_t *tail = (uint16_t *)p->packed + rounded_up(p->tokens < SLAB ? p->tokens : SLAB) * k;
    long filled = p->n % BLOCK * k;
    if (!filled) return;
    memcpy(tail, p->w + p->n / BLOCK * BLOCK * k, (size_t)filled * sizeof *tail);
    memset(tail + filled, 0, (size_t)(BLOCK * k - filled) * sizeof *tail);
    p->tail = tail;
}

/* x (T, K), w (N, K), bias (N) or 0, y (T, N), scratch (T rounded up, but at most SLAB, K) and (BLOCK, K) more unless N
   is a multiple of BLOCK, T, K, N, threads */
static PyObject *multiply_one(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long x, w, bias, y, scratch;
    long tokens, k, n;
    int threads;
    if (!PyArg_ParseTuple(args, "KKKKKllli", &x, &w, &bias, &y, &scratch, &tokens, &k, &n, &threads)) return NULL;
    Product product = {address(w), address(x), address(bias), NULL, address(y), NULL, NULL, tokens, n, address(scratch)};
    Py_BEGIN_ALLOW_THREADS;
    fill_tail(&product, k);
    for (long first = 0; first < tokens; first += SLAB) {
        Product part = slab(&product, first, k);
        Batch batch = {&part, 1, k, 0, 0, 0};
        multiply_in_turn(&batch, 1, threads);
    }
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

typedef struct {
    const int64_t *ids;
    const uint16_t *x;
    uint16_t *y, *scratch;
    long n, k, d, i;
} Tokens;

/* Where the next expert's choices and numbers go. */
typedef struct {
    int *x_rows, *y_rows;
    uint16_t *scratch;
} Room;

/* Both products of one expert, for the choices in which it stands. */
static void enter(const Tokens *t, int64_t expert, Product *up, Product *down, Room *room) {
    long tokens = 0;
    for (long at = 0; at < t->n * t->k; at++)
        if (t->ids[at] == expert) {
            room->x_rows[tokens] = (int)(at / t->k);
            room->y_rows[tokens++] = (int)at;
        }
    long padded = rounded_up(tokens);
    uint16_t *packed_x = room->scratch, *packed_h = packed_x + padded * t->d, *u = packed_h + padded * t->i;
    *up = (Product){up->w, t->x, NULL, NULL, u, room->x_rows, NULL, tokens, 2 * t->i, (uint32_t *)packed_x};
    *down = (Product){down->w, u, NULL, NULL, t->y, NULL, room->y_rows, tokens, t->d, (uint32_t *)packed_h};
    *room = (Room){room->x_rows + tokens, room->y_rows + tokens, u + tokens * 2 * t->i};
}

/* [(expert, up (2I, D), down (D, I)), ...], ids (N, K) int64, x (N, D), y (N * K, D), scratch and its elements,
   N, K, D, I, threads: the rows of y of all choices in which one of these distinct experts stands */
static PyObject *apply_experts(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *list;
    unsigned long long ids, x, y, scratch;
    long elements;
    Tokens t;
    int threads;
    if (!PyArg_ParseTuple(args, "O!KKKKllllli", &PyList_Type, &list, &ids, &x, &y, &scratch, &elements, &t.n, &t.k,
                          &t.d, &t.i, &threads))
        return NULL;
    t.ids = address(ids), t.x = address(x), t.y = address(y), t.scratch = address(scratch);
    size_t count = (size_t)PyList_Size(list), choices = (size_t)(t.n * t.k);
    Product *products = PyMem_Calloc(2 * count + 1, sizeof(Product));
    int *rows = PyMem_Malloc((2 * choices + 1) * sizeof(int));
    Room room = {rows, rows + choices, t.scratch};
    int fine = products != NULL && rows != NULL;
    if (!fine) PyErr_NoMemory();
    for (size_t i = 0; fine && i < count; i++) {
        long long expert;
        unsigned long long up, down;
        fine = PyArg_ParseTuple(PyList_GetItem(list, (Py_ssize_t)i), "LKK", &expert, &up, &down);
        if (!fine) break;
        products[i].w = address(up), products[count + i].w = address(down);
        enter(&t, expert, products + i, products + count + i, &room);
    }
    if (fine && room.scratch - t.scratch > elements) {
        PyErr_SetString(PyExc_ValueError, "scratch is too small");
        fine = 0;
    }
    if (fine) {
        Batch batches[] = {{products, (long)count, t.d, 0, 0, 0}, {products + count, (long)count, t.i, 1, 0, 0}};
        Py_BEGIN_ALLOW_THREADS;
        multiply_in_turn(batches, 2, threads);
        Py_END_ALLOW_THREADS;
    }
    PyMem_Free(products);
    PyMem_Free(rows);
    if (!fine) return NULL;
    Py_RETURN_NONE;
}

/* ids (N, K) int64, weights (N, K) float32, y (N * K, D), out (N, D), N, K, D, num_experts, threads */
static PyObject *add_up_choices(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long ids, weights, y, out;
    Sum s;
    long num_experts;
    int threads;
    if (!PyArg_ParseTuple(args, "KKKKlllli", &ids, &weights, &y, &out, &s.n, &s.k, &s.d, &num_experts, &threads))
        return NULL;
    if (s.k > MOST_CHOICES) return PyErr_Format(PyExc_ValueError, "more than %d choices", MOST_CHOICES);
    s.ids = address(ids), s.weights = address(weights), s.y = address(y), s.out = address(out);
    s.num_experts = num_experts;
    Py_BEGIN_ALLOW_THREADS;
    add_up_all(&s, threads);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

/* queries (T, Q, D) and how far apart tokens and heads are in it, keys (P, H, D), values (P, H, V), sinks (Q) float32 or
   0, out (T, Q, V), blocks and spans (T, 2) and tiles (N, 5) int32, N, scale, H, Q / H, D, V, tokens of a block,
   threads */
static PyObject *attend_all(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long queries, keys, values, sinks, out, blocks, spans, tiles;
    Attention a;
    long count;
    int threads;
    if (!PyArg_ParseTuple(args, "KllKKKKKKKlfllllli", &queries, &a.token_stride, &a.head_stride, &keys, &values, &sinks,
                          &out, &blocks, &spans, &tiles, &count, &a.scale, &a.heads, &a.groups, &a.width,
                          &a.value_width, &a.block_tokens, &threads))
        return NULL;
    if (a.width > MOST_WIDTH || a.value_width > MOST_WIDTH)
        return PyErr_Format(PyExc_ValueError, "heads wider than %d", MOST_WIDTH);
    a.queries = address(queries), a.keys = address(keys), a.values = address(values), a.sinks = address(sinks);
    a.out = address(out), a.blocks = address(blocks), a.spans = address(spans);
    Py_BEGIN_ALLOW_THREADS;
    attend(&a, address(tiles), count, threads);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

/* x (T, D), w (D), y (T, D), T, D, epsilon, threads */
static PyObject *normalise_rows(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long x, w, y;
    long tokens, d;
    float epsilon;
    int threads;
    if (!PyArg_ParseTuple(args, "KKKllfi", &x, &w, &y, &tokens, &d, &epsilon, &threads)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    normalise_all(address(x), address(w), address(y), tokens, d, epsilon, threads);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

/* x (T, K), cos and sin (T, D), scratch as multiply's, T, K, D, threads, and of queries, keys and values, in any order:
   (w (N, K), bias (N) or 0, y (.., N), rows (T) int32 of it or 0, N, norm or 0, its width, epsilon, whether rotated) */
static PyObject *project_all(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long x, cosines, sines, scratch;
    long tokens, k, width;
    int threads;
    PyObject *list;
    if (!PyArg_ParseTuple(args, "KKKKllliO!", &x, &cosines, &sines, &scratch, &tokens, &k, &width, &threads, &PyTuple_Type,
                          &list))
        return NULL;
    Product products[PARTS];
    Finish finishes[PARTS];
    if (PyTuple_Size(list) != PARTS) return PyErr_Format(PyExc_ValueError, "%d parts are wanted", PARTS);
    for (Py_ssize_t i = 0; i < PARTS; i++) {
        unsigned long long w, bias, y, rows, norm;
        long n, norm_width;
        float epsilon;
        int rotates;
        if (!PyArg_ParseTuple(PyTuple_GetItem(list, i), "KKKKlKlfp", &w, &bias, &y, &rows, &n, &norm, &norm_width,
                              &epsilon, &rotates))
            return NULL;
        int whole = n % BLOCK == 0 && (!rotates || (width > 0 && n % width == 0));
        if (!whole || (norm && (norm_width <= 0 || n % norm_width)))
            return PyErr_Format(PyExc_ValueError, "%ld outputs in heads of %ld, norms of %ld", n, width, norm_width);
        products[i] = (Product){address(w), address(x), address(bias), NULL, address(y), NULL,
                                address(rows), tokens, n, address(scratch)};
        finishes[i] = (Finish){address(norm), norm_width, epsilon, rotates};
    }
    Rotation rotation = {address(cosines), address(sines), width};
    Py_BEGIN_ALLOW_THREADS;
    project(products, k, finishes, &rotation, threads);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

/* As multiply's, of which y are the logits, and weights (T, choices) float32, ids (T, choices) int64, choices, whether
   the weights are normalised, before threads */
static PyObject *route_all(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long x, w, bias, y, scratch, weights, ids;
    long tokens, k, n;
    Choice choice;
    int threads;
    if (!PyArg_ParseTuple(args, "KKKKKlllKKlpi", &x, &w, &bias, &y, &scratch, &tokens, &k, &n, &weights, &ids, &choice.k,
                          &choice.normalises, &threads))
        return NULL;
    if (n > MOST_EXPERTS || choice.k > n)
        return PyErr_Format(PyExc_ValueError, "%ld of %ld experts, of which at most %d", choice.k, n, MOST_EXPERTS);
    Product product = {address(w), address(x), address(bias), NULL, address(y), NULL, NULL, tokens, n, address(scratch)};
    choice.weights = address(weights), choice.ids = address(ids);
    Py_BEGIN_ALLOW_THREADS;
    fill_tail(&product, k);
    route(&product, k, &choice, threads);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"supported", supported, METH_NOARGS, "Whether this machine can run the others."},
    {"multiply", multiply_one, METH_VARARGS, "See pgmoe.cpu.products."},
    {"apply_experts", apply_experts, METH_VARARGS, "See pgmoe.cpu.kernel_tokens."},
    {"add_up", add_up_choices, METH_VARARGS, "See pgmoe.cpu.kernel_tokens."},
    {"attend", attend_all, METH_VARARGS, "See pgmoe.kv.kernel_attention."},
    {"project", project_all, METH_VARARGS, "See pgmoe.models.self_attention."},
    {"route", route_all, METH_VARARGS, "See pgmoe.models.kernel_router."},
    {"normalise", normalise_rows, METH_VARARGS, "See pgmoe.models.norm."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernels", "Kernels for CPUs with AMX.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void) {
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL) return NULL;
    int failed = PyModule_AddIntConstant(module, "VERSION", VERSION) || PyModule_AddIntConstant(module, "SIDE", SIDE) ||
                 PyModule_AddIntConstant(module, "SLAB", SLAB) ||
                 PyModule_AddIntConstant(module, "BLOCK", BLOCK) ||
                 PyModule_AddIntConstant(module, "MOST_CHOICES", MOST_CHOICES) ||
                 PyModule_AddIntConstant(module, "MOST_EXPERTS", MOST_EXPERTS) ||
                 PyModule_AddIntConstant(module, "MOST_WIDTH", MOST_WIDTH);
    if (!failed) return module;
    Py_DecRef(module);
    return NULL;
}
