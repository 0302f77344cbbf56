/* A TFLite delegate that stands in for an accelerator's. It takes products of a float tensor with one that is as large or lacks the
   last dimension, computes them, and fails in the way that its option "fail" says: create, prepare, kernel, invoke, lost:N (after
   N runs), wrong, abort, nothing.

   What it needs of TensorFlow Lite's C interface (tensorflow/lite/core/c/common.h) is declared here, as far as it goes; what lies
   behind is left as zeros. Works with tflite-runtime 2.14 and ai-edge-litert 2.3. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum { OK = 0, ERROR = 1 } Status;
typedef struct { int size; int data[]; } IntArray;
typedef struct { int type; union { float* f; void* raw; } data; IntArray* dims; float scale; int32_t zero; int allocation; size_t bytes; } Tensor;
typedef struct { IntArray *inputs, *outputs, *intermediates, *temporaries; void *user, *builtin; } Node;
typedef struct Context Context;
typedef struct Registration {
  void* (*init)(Context*, const char*, size_t);
  void (*release)(Context*, void*);
  Status (*prepare)(Context*, Node*);
  Status (*invoke)(Context*, Node*);
  const char* (*profile)(const Context*, const Node*);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* rest[8];
} Registration;
typedef struct Delegate Delegate;
struct Context {
  size_t tensors_size;
  Status (*plan)(Context*, IntArray**);
  void* tensors;
  void* impl;
  Status (*resize)(Context*, Tensor*, IntArray*);
  void (*report)(Context*, const char*, ...);
  Status (*add_tensors)(Context*, int, int*);
  Status (*node)(Context*, int, Node**, Registration**);
  Status (*replace)(Context*, Registration, const IntArray*, Delegate*);
};
struct Delegate { void* data; Status (*prepare)(Context*, Delegate*); void *from, *to, *release; int64_t flags; void* builder; };
typedef struct { Delegate* delegate; IntArray *nodes, *inputs, *outputs; } Params;
typedef struct { char fail[32]; long runs; } State;

enum { MUL = 18, FLOAT32 = 1 };
/* The tensors lie one behind the other, and the declared part of one is only its beginning. */
static const size_t tensor_size = 112;

static Tensor* tensor(Context* context, int index) { return (Tensor*)((char*)context->tensors + index * tensor_size); }

static void* init(Context* context, const char* buffer, size_t length) {
  const Params* given = (const Params*)buffer;
  Params* kept = malloc(sizeof(Params));
  (void)context, (void)length;
  *kept = *given;
  kept->inputs = malloc(sizeof(int) * (1 + given->inputs->size));
  memcpy(kept->inputs, given->inputs, sizeof(int) * (1 + given->inputs->size));
  kept->outputs = malloc(sizeof(int) * (1 + given->outputs->size));
  memcpy(kept->outputs, given->outputs, sizeof(int) * (1 + given->outputs->size));
  return kept;
}

static void release(Context* context, void* data) {
  Params* kept = data;
  (void)context;
  free(kept->inputs), free(kept->outputs), free(kept);
}

static State* state_of(Node* node) { return ((Params*)node->user)->delegate->data; }

static Status prepare_kernel(Context* context, Node* node) {
  (void)context;
  return strcmp(state_of(node)->fail, "kernel") ? OK : ERROR;
}

static Status invoke(Context* context, Node* node) {
  State* state = state_of(node);
  Tensor *a = tensor(context, node->inputs->data[0]), *b = tensor(context, node->inputs->data[1]);
  Tensor* product = tensor(context, node->outputs->data[0]);
  size_t run = a->bytes / b->bytes;
  state->runs++;
  if (!strcmp(state->fail, "invoke")) return ERROR;
  if (!strcmp(state->fail, "abort")) abort();
  if (!strncmp(state->fail, "lost:", 5) && state->runs > atol(state->fail + 5)) return ERROR;
  for (size_t i = 0; i < product->bytes / sizeof(float); i++) product->data.f[i] = a->data.f[i] * b->data.f[i / run];
  if (!strcmp(state->fail, "wrong")) product->data.f[0] += 100;
  return OK;
}

static int takes(Context* context, Node* node, Registration* registration) {
  if (registration->builtin_code != MUL || node->inputs->size != 2) return 0;
  Tensor *a = tensor(context, node->inputs->data[0]), *b = tensor(context, node->inputs->data[1]);
  return a->type == FLOAT32 && b->bytes && a->bytes % b->bytes == 0 && a->bytes == tensor(context, node->outputs->data[0])->bytes;
}

static Status prepare(Context* context, Delegate* delegate) {
  State* state = delegate->data;
  IntArray* plan;
  if (!strcmp(state->fail, "prepare")) { context->report(context, "the stand-in refuses"); return ERROR; }
  if (!strcmp(state->fail, "nothing")) return OK;
  if (context->plan(context, &plan)) return ERROR;
  int count = plan->size, *order = malloc(sizeof(int) * count);
  memcpy(order, plan->data, sizeof(int) * count);
  Registration kernel = {init, release, prepare_kernel, invoke, NULL, 0, "FakeTpu", 1, {0}};
  for (int i = 0; i < count; i++) {
    Node* node; Registration* registration;
    if (context->node(context, order[i], &node, &registration)) return ERROR;
    if (!takes(context, node, registration)) continue;
    IntArray* one = malloc(2 * sizeof(int)); /* each by itself: a kernel here computes one product */
    one->size = 1, one->data[0] = order[i];
    Status status = context->replace(context, kernel, one, delegate);
    free(one);
    if (status) return ERROR;
  }
  free(order);
  return OK;
}

Delegate* tflite_plugin_create_delegate(char** names, char** values, size_t count, void (*report)(const char*)) {
  State* state = calloc(1, sizeof(State));
  for (size_t i = 0; i < count; i++)
    if (!strcmp(names[i], "fail")) snprintf(state->fail, sizeof state->fail, "%s", values[i]);
  if (!strcmp(state->fail, "create")) { report("no device is plugged in"); free(state); return NULL; }
  Delegate* delegate = calloc(1, sizeof(Delegate) + 64);
  delegate->data = state, delegate->prepare = prepare;
  return delegate;
}

void tflite_plugin_destroy_delegate(Delegate* delegate) {
  if (delegate) free(delegate->data), free(delegate); /* Python destroys what was never made, too */
}
