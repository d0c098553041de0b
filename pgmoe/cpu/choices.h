/* What experts make of the tokens that chose them: a list of experts, given with where their weights lie, is computed
   together, the first products before the second ones. For `_kernels.c`, whose `address` and `multiply_in_turn` it uses.

   Letters: N tokens, K experts of each, D width of the model, I of an expert. */

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

/* ids int64, how many, num_experts: {expert: its choices}, ascending; those at or above num_experts are left out, none
   may be negative */
static PyObject *count_choices(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long ids;
    long choices, num_experts;
    if (!PyArg_ParseTuple(args, "Kll", &ids, &choices, &num_experts)) return NULL;
    long *counts = PyMem_Calloc((size_t)num_experts + 1, sizeof(long));
    if (counts == NULL) return PyErr_NoMemory();
    const int64_t *id = address(ids);
    for (long i = 0; i < choices; i++) {
        if (id[i] < 0) {
            PyMem_Free(counts);
            return PyErr_Format(PyExc_ValueError, "expert %ld", (long)id[i]);
        }
        if (id[i] < num_experts) counts[id[i]]++;
    }
    PyObject *found = PyDict_New();
    for (long e = 0; found != NULL && e < num_experts; e++) {
        if (counts[e] == 0) continue;
        PyObject *expert = PyLong_FromLong(e), *count = PyLong_FromLong(counts[e]);
        if (expert == NULL || count == NULL || PyDict_SetItem(found, expert, count)) Py_CLEAR(found);
        Py_XDECREF(expert);
        Py_XDECREF(count);
    }
    PyMem_Free(counts);
    return found;
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
