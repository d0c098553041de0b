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

enum { VERSION = 4 }; /* another one where arguments change */

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

#include "choices.h"

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

/* x (T, D), what is added to it and their sum (T, D) or 0 and 0, w (D), y (T, D), T, D, epsilon, threads */
static PyObject *normalise_rows(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long x, added, sum, w, y;
    long tokens, d;
    float epsilon;
    int threads;
    if (!PyArg_ParseTuple(args, "KKKKKllfi", &x, &added, &sum, &w, &y, &tokens, &d, &epsilon, &threads)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    normalise_all(address(x), address(added), address(sum), address(w), address(y), tokens, d, epsilon, threads);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

/* x, what is added to it, their sum (T, D), T, D, threads */
static PyObject *add_rows(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long x, added, sum;
    long tokens, d;
    int threads;
    if (!PyArg_ParseTuple(args, "KKKlli", &x, &added, &sum, &tokens, &d, &threads)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    add_all(address(x), address(added), address(sum), tokens, d, threads);
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
    {"count", count_choices, METH_VARARGS, "See pgmoe.cpu.kernel_tokens."},
    {"add_up", add_up_choices, METH_VARARGS, "See pgmoe.cpu.kernel_tokens."},
    {"attend", attend_all, METH_VARARGS, "See pgmoe.kv.kernel_attention."},
    {"project", project_all, METH_VARARGS, "See pgmoe.models.self_attention."},
    {"route", route_all, METH_VARARGS, "See pgmoe.models.kernel_router."},
    {"normalise", normalise_rows, METH_VARARGS, "See pgmoe.models.norm."},
    {"add", add_rows, METH_VARARGS, "See pgmoe.models.decoder_layer."},
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
