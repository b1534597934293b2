/* Driver of an nnloom accelerator behind a serial line, for microcontrollers: C99, no allocation, one caller at a time.
 *
 * model.h, made by `nnloom driver`, has `nnl_model`: program, weights and where tensors lie.
 *
 *     static nnl_device device;
 *     int8_t input[NNL_INPUT_0_BYTES], output[NNL_OUTPUT_0_BYTES];
 *     const int8_t *inputs[] = {input};
 *     int8_t *outputs[] = {output};
 *     nnl_init(&device, &port, &nnl_model, 1);
 *     int result = nnl_run(&device, 0, inputs, outputs);    (loads the board, the first time and after its reset)
 *
 * Tensors are int8, rows by columns by channels, without gaps. What the CPU does in the network, such as QUANTIZE and
 * SOFTMAX, is not in here: model.h names scale and zero point of each tensor, and says where the network has uint8.
 */
#ifndef NNLOOM_H
#define NNLOOM_H

#include <stddef.h>
#include <stdint.h>

#include "nnloom_map.h"

enum {
    NNL_OK = 0,
    NNL_PORT = -1,   /* the port failed: write or read gave a negative number */
    NNL_SILENT = -2, /* no answer; check cable, baud rate and bitstream */
    NNL_OTHER = -3,  /* the board has another bitstream, or another version of it */
    NNL_LOST = -4,   /* the board was reset, or another driver uses it, again and again */
    NNL_DEVICE = -5, /* the engine reports an error: see `status` */
    NNL_LATE = -6,   /* the program does not end */
};

typedef struct {
    void *context;
    /* Send all of `data`; negative: the port failed. */
    int (*write)(void *context, const uint8_t *data, size_t size);
    /* Read up to `size` bytes that have come, waiting for the first for `milliseconds` at most; 0: none came. */
    int (*read)(void *context, uint8_t *data, size_t size, unsigned milliseconds);
} nnl_port;

/* Words that one frame writes: `run` at consecutive addresses, the next run `jump` words after the last address. */
typedef struct { uint32_t address; uint16_t jump; uint8_t run, count; const uint32_t *words; } nnl_burst;
/* As it is on the line: rows 0, 4, 8 and so on, then rows 1, 5, 9 and so on, ... (a bank of the board each). */
typedef struct {
    uint16_t rows, columns, channels;
    uint32_t row_bytes, pixel_bytes, bank_bytes[4];
} nnl_tensor;
/* A program: what has to be in the memories before it, unless that was loaded with the model, and the word of the script that
 * runs it; how many frames RUN and the MORE behind it are, and whether the region's inputs are in them, its outputs in the answer. */
typedef struct {
    uint32_t burst_count;
    const nnl_burst *bursts;
    uint16_t script, frames;
    uint8_t takes, gives;
} nnl_call;
typedef struct {
    const nnl_tensor *inputs, *outputs;
    const nnl_call *calls;
    uint16_t input_count, output_count, call_count;
} nnl_region;
typedef struct {
    uint32_t config_hash, burst_count;
    const nnl_burst *bursts;
    const nnl_region *regions;
    const uint32_t *script; /* kept by the board */
    uint16_t region_count, script_words;
    uint8_t packs; /* the script leaves bytes between pixels out */
} nnl_model_t;

typedef struct {
    const nnl_port *port;
    const nnl_model_t *model;
    unsigned timeout_ms; /* silence after which a request is sent again: set to 300, plus a frame's time on the line */
    uint32_t status, cycles; /* of the last inference */
    uint32_t clock_hz;       /* of the accelerator; 0 before the board has answered */
    uint32_t retries;        /* requests that were sent again so far */
    /* the driver's own */
    uint16_t session, received;
    uint8_t sequence, loaded;
    uint8_t frame[NNL_FRAME_BYTES], line[NNL_LINE_BYTES], incoming[NNL_LINE_BYTES];
} nnl_device;

/* Prepare a device; nothing is sent yet. The session number is any, but not that of another driver at the same time. */
void nnl_init(nnl_device *device, const nnl_port *port, const nnl_model_t *model, uint16_t session);
/* Run a region of the model: write the inputs, run its programs, read the outputs. Returns NNL_OK or what went wrong. */
int nnl_run(nnl_device *device, unsigned region, const int8_t *const inputs[], int8_t *const outputs[]);

#endif
