/* See nnloom.h; the protocol is docs/protocol.md: a request has happened or it has not, so sending it again is harmless. */
#include "nnloom.h"

#include <string.h>

enum { SILENCES = 4, DAMAGES = 20, RESTARTS = 3, POLLS = 40 };

static void put32(uint8_t *p, uint32_t v) { for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> 8 * i); }
static uint32_t get32(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24; }

static uint32_t crc32(const uint8_t *data, size_t size) {
    uint32_t crc = 0xFFFFFFFF;
    while (size--) {
        crc ^= *data++;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
    }
    return ~crc;
}

static size_t cobs_encode(const uint8_t *data, size_t size, uint8_t *out) {
    size_t code = 0, end = 1;
    for (size_t i = 0; i < size; i++) {
        if (data[i]) out[end++] = data[i];
        if (!data[i] || end - code == 255) {
            out[code] = (uint8_t)(end - code);
            code = end++;
        }
    }
    out[code] = (uint8_t)(end - code);
    out[end++] = 0;
    return end;
}

/* Length of what `in` stands for, or -1 if it is no COBS frame or too long. */
static int cobs_decode(const uint8_t *in, size_t size, uint8_t *out, size_t room) {
    size_t end = 0, i = 0;
    while (i < size) {
        unsigned code = in[i++];
        if (code - 1 > size - i || end + code > room) return -1;
        memcpy(out + end, in + i, code - 1);
        end += code - 1;
        i += code - 1;
        if (code != 255 && i < size) out[end++] = 0;
    }
    return (int)end;
}

/* Wait for a frame: its length in `frame`, 0 if nothing came, -1 if what came is damaged; NNL_PORT. */
static int receive(nnl_device *d, unsigned milliseconds) {
    for (;;) {
        uint8_t byte;
        int got = d->port->read(d->port->context, &byte, 1, milliseconds);
        if (got < 0) return NNL_PORT - 1;
        if (!got) return 0;
        if (byte) {
            if (d->received < sizeof d->incoming) d->incoming[d->received] = byte;
            if (d->received < UINT16_MAX) d->received++;
        } else if (d->received) {
            unsigned length = d->received;
            d->received = 0;
            int size = length <= sizeof d->incoming ? cobs_decode(d->incoming, length, d->frame, sizeof d->frame) : -1;
            if (size < NNL_RESPONSE_BYTES + 4 || crc32(d->frame, size - 4) != get32(d->frame + size - 4)) return -1;
            return size - 4;
        }
    }
}

/* Put the CRC behind `size` bytes of `frame`, the first four of them the header that is made here, and encode it. */
static size_t seal(nnl_device *d, size_t size, unsigned opcode, uint8_t sequence) {
    uint8_t *h = d->frame;
    h[0] = (uint8_t)opcode; h[1] = sequence; h[2] = (uint8_t)d->session; h[3] = (uint8_t)(d->session >> 8);
    put32(h + size, crc32(h, size));
    return cobs_encode(h, size + 4, d->line);
}

static int send(nnl_device *d, const uint8_t *data, size_t size) { return d->port->write(d->port->context, data, size) < 0; }

static uint32_t line_bytes(const nnl_tensor *t, unsigned count) {
    uint32_t bytes = 0;
    for (; count--; t++) for (int bank = 0; bank < 4; bank++) bytes += t->bank_bytes[bank];
    return bytes;
}

/* The element at a place of the line, which has tensor after tensor, bank after bank; NULL: a byte between pixels or rows. */
static int8_t *element(const nnl_tensor *t, int8_t *const data[], uint32_t at) {
    uint32_t bank = 0;
    for (; at >= line_bytes(t, 1); data++) at -= line_bytes(t++, 1);
    while (at >= t->bank_bytes[bank]) at -= t->bank_bytes[bank++];
    uint32_t row = bank + at / t->row_bytes * 4, byte = at % t->row_bytes, column = byte / t->pixel_bytes, channel = byte % t->pixel_bytes;
    if (row >= t->rows || column >= t->columns || channel >= t->channels) return NULL;
    return *data + ((size_t)row * t->columns + column) * t->channels + channel;
}

/* Send a frame of a script's inputs. */
static int send_inputs(nnl_device *d, const nnl_region *r, const nnl_call *c, int8_t *const in[], unsigned number, uint8_t sequence) {
    uint32_t at = 4 * (NNL_FRAME_WORDS + 2) * number, end = 4 + (c->takes ? line_bytes(r->inputs, r->input_count) : 0);
    size_t size = 4;
    for (; size < 4 * (NNL_FRAME_WORDS + 3) && (at < end || at % 4); at++) {
        const int8_t *e = at < 4 || at >= end ? NULL : element(r->inputs, in, at - 4);
        d->frame[size++] = at < 4 ? (uint8_t)(c->script >> 8 * at) : e ? (uint8_t)*e : 0;
    }
    return send(d, d->line, seal(d, size, number ? NNL_OPCODE_MORE : NNL_OPCODE_RUN, sequence));
}

/* Have a request of `size` bytes in `frame` executed once, or the frames of a script's inputs, of which the last one is answered.
 * Leaves the answer in `frame`; returns its length, or what went wrong. */
static int request(nnl_device *d, unsigned opcode, size_t size, const nnl_region *r, const nnl_call *c, int8_t *const in[]) {
    const uint8_t *h = d->frame, first = (uint8_t)(d->sequence + 1);
    unsigned frames = c ? c->frames : 1, next = 0, went_back = frames, polls = 0;
    d->sequence = (uint8_t)(d->sequence + frames);
    if (!c) size = seal(d, size, opcode, first);
    for (int silences = 0, damages = 0; silences < SILENCES && damages < DAMAGES;) {
        for (; next < frames; next++)
            if (c ? send_inputs(d, r, c, in, next, (uint8_t)(first + next)) : send(d, d->line, size)) return NNL_PORT;
        int length = receive(d, d->timeout_ms << silences);
        unsigned answer = h[0], done = (uint8_t)(h[1] - first + 1); /* frames that the board has executed */
        if (length == NNL_PORT - 1) return NNL_PORT;
        if (length > 0) {
            if (answer == NNL_ANSWER_NO_SESSION && opcode != NNL_OPCODE_HELLO) return NNL_LOST;
            if ((h[2] | h[3] << 8) != d->session && answer != NNL_ANSWER_BAD_FRAME) continue;
            if (answer == NNL_ANSWER_OK && done == frames) return length;
            if (answer == NNL_ANSWER_BAD_REQUEST) return NNL_OTHER;
            if (answer == NNL_ANSWER_RUNNING && (silences = 0, polls++ == POLLS)) return NNL_LATE;
            if ((answer != NNL_ANSWER_BAD_FRAME && answer != NNL_ANSWER_BAD_SEQUENCE) || done == went_back) continue;
            if (opcode == NNL_OPCODE_HELLO) done = 0; /* the sequence number is that of another session */
            if (done > frames) return NNL_LOST;
            next = went_back = done; /* once: complaints about what follows come, too */
            damages++;
        } else {
            silences += length == 0; damages += length < 0;
            next = frames - 1; /* what is said to it tells how far the board has come */
            went_back = frames;
            if (send(d, (const uint8_t *)"", 1)) return NNL_PORT; /* ends what may be left of a frame */
        }
        d->retries++;
    }
    return NNL_SILENT;
}

/* A request with a burst whose words stand in `frame`; its answer has `read` words. */
static int burst(nnl_device *d, unsigned opcode, uint32_t address, unsigned run, unsigned jump, unsigned words, unsigned read) {
    uint8_t *h = d->frame;
    put32(h + 4, address);
    h[8] = (uint8_t)run; h[9] = 0; h[10] = (uint8_t)jump; h[11] = (uint8_t)(jump >> 8);
    int length = request(d, opcode, NNL_REQUEST_BYTES + 4 * words, NULL, NULL, NULL);
    return length < 0 ? length : length == (int)(NNL_RESPONSE_BYTES + 4 * read) ? NNL_OK : NNL_OTHER;
}

static void put_words(nnl_device *d, const uint32_t *words, unsigned count) {
    for (unsigned i = 0; i < count; i++) put32(d->frame + NNL_REQUEST_BYTES + 4 * i, words[i]);
}

static int write_bursts(nnl_device *d, const nnl_burst *b, uint32_t count) {
    for (; count--; b++) {
        put_words(d, b->words, b->count);
        int result = burst(d, NNL_OPCODE_WRITE, b->address, b->run, b->jump, b->count, 0);
        if (result) return result;
    }
    return NNL_OK;
}

/* Run a script, and take STATUS, CYCLES and the outputs from its answer, which may go on in further ones. */
static int call(nnl_device *d, const nnl_region *r, const nnl_call *c, int8_t *const in[], int8_t *const out[]) {
    uint8_t results[8];
    uint32_t at = 0, end = 8 + (c->gives ? line_bytes(r->outputs, r->output_count) : 0);
    int length = request(d, NNL_OPCODE_RUN, 0, r, c, in);
    for (; length >= 0; length = request(d, NNL_OPCODE_MORE, 4, NULL, NULL, NULL)) {
        for (int i = NNL_RESPONSE_BYTES; i < length && at < end; i++, at++) {
            int8_t *e = at < 8 ? (int8_t *)&results[at] : element(r->outputs, out, at - 8);
            if (e) *e = (int8_t)d->frame[i];
        }
        if (length == NNL_RESPONSE_BYTES) return NNL_OTHER;
        if (at < end) continue;
        d->status = get32(results);
        d->cycles += get32(results + 4);
        return d->status & NNL_STATUS_ERROR ? NNL_DEVICE : NNL_OK;
    }
    return length == NNL_LATE && burst(d, NNL_OPCODE_RESET, 0, 1, 1, 0, 0) ? NNL_SILENT : length;
}

/* Open a session, and load the model if the board is the right one. */
static int load(nnl_device *d) {
    d->session = d->session == UINT16_MAX ? 1 : d->session + 1; /* a new one: what comes of the old is refused */
    int result = burst(d, NNL_OPCODE_HELLO, 0, 1, 1, 0, NNL_HELLO_WORDS);
    if (result) return result;
    const uint8_t *w = d->frame + NNL_RESPONSE_BYTES;
    unsigned most = get32(w) >> 16;
    d->clock_hz = get32(w + 4);
    if (w[0] != NNL_LINK_VERSION || get32(w + 12) != NNL_MAGIC || get32(w + 16) != NNL_ISA_VERSION ||
        get32(w + 20) != d->model->config_hash || most < NNL_FRAME_WORDS || (d->model->packs && !(w[1] & 1))) return NNL_OTHER;
    /* Whatever ran there: memories take no words while a program runs. */
    if ((result = burst(d, NNL_OPCODE_RESET, 0, 1, 1, 0, 0))) return result;
    if ((result = write_bursts(d, d->model->bursts, d->model->burst_count))) return result;
    put_words(d, d->model->script, d->model->script_words);
    result = burst(d, NNL_OPCODE_SCRIPT, 0, 1, 1, d->model->script_words, 0);
    d->loaded = !result;
    return result;
}

static int run_once(nnl_device *d, const nnl_region *r, int8_t *const in[], int8_t *const out[]) {
    int result = d->loaded ? NNL_OK : load(d);
    d->cycles = 0;
    for (unsigned i = 0; !result && i < r->call_count; i++) {
        result = write_bursts(d, r->calls[i].bursts, r->calls[i].burst_count);
        if (!result) result = call(d, r, &r->calls[i], in, out);
    }
    if (result) d->loaded = 0;
    return result;
}

void nnl_init(nnl_device *d, const nnl_port *port, const nnl_model_t *model, uint16_t session) {
    memset(d, 0, sizeof *d);
    d->port = port; d->model = model; d->session = session; d->timeout_ms = 300;
}

int nnl_run(nnl_device *d, unsigned region, const int8_t *const inputs[], int8_t *const outputs[]) {
    int result = NNL_LOST;
    for (int i = 0; i < RESTARTS && result == NNL_LOST; i++) result = run_once(d, &d->model->regions[region], (int8_t *const *)inputs, outputs);
    return result;
}
