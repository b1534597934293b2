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
            if (size < NNL_RESPONSE_BYTES + 4 || size % 4 || crc32(d->frame, size - 4) != get32(d->frame + size - 4)) return -1;
            return size - 4;
        }
    }
}

/* Have a request executed once; the words of a WRITE stand in `frame` behind the header. Leaves the answer there. */
static int request(nnl_device *d, unsigned opcode, uint32_t address, unsigned run, unsigned jump, unsigned read, unsigned words) {
    uint8_t *h = d->frame;
    size_t size = NNL_REQUEST_BYTES + 4 * words;
    h[0] = (uint8_t)opcode; h[1] = ++d->sequence; h[2] = (uint8_t)d->session; h[3] = (uint8_t)(d->session >> 8);
    put32(h + 4, address);
    h[8] = (uint8_t)run; h[9] = (uint8_t)read; h[10] = (uint8_t)jump; h[11] = (uint8_t)(jump >> 8);
    put32(h + size, crc32(h, size));
    size = cobs_encode(h, size + 4, d->line);
    for (int silences = 0, damages = 0; silences < SILENCES && damages < DAMAGES;) {
        d->retries += silences + damages > 0;
        if (d->port->write(d->port->context, d->line, size) < 0) return NNL_PORT;
        for (;;) {
            int length = receive(d, d->timeout_ms << silences);
            unsigned answer = h[0], same = (h[2] | h[3] << 8) == d->session;
            if (length == NNL_PORT - 1) return NNL_PORT;
            silences += length == 0;
            damages += length < 0;
            if (length <= 0) break;
            if (same && answer == NNL_ANSWER_DONE) {
                if (h[1] == (opcode == NNL_OPCODE_START ? d->sequence : d->start_sequence) && length == NNL_RESPONSE_BYTES + 12) {
                    d->done = 1; d->status = get32(h + 4); d->cycles = get32(h + 8);
                    if (opcode == NNL_OPCODE_START) return NNL_OK; /* its own answer was lost */
                }
            } else if (same && answer == NNL_ANSWER_OK && h[1] == d->sequence) {
                return length == (int)(NNL_RESPONSE_BYTES + 4 * read) ? NNL_OK : NNL_OTHER;
            } else if (answer == NNL_ANSWER_NO_SESSION && opcode != NNL_OPCODE_HELLO) {
                return NNL_LOST;
            } else if (answer == NNL_ANSWER_BAD_REQUEST) {
                return NNL_OTHER;
            } else if (answer == NNL_ANSWER_BAD_FRAME || answer == NNL_ANSWER_BAD_SEQUENCE) {
                damages++;
                break;
            }
        }
        if (d->port->write(d->port->context, (const uint8_t *)"", 1) < 0) return NNL_PORT; /* ends what may be left of a frame */
    }
    return NNL_SILENT;
}

static int write_bursts(nnl_device *d, const nnl_burst *b, uint32_t count) {
    for (; count--; b++) {
        for (unsigned i = 0; i < b->count; i++) put32(d->frame + NNL_REQUEST_BYTES + 4 * i, b->words[i]);
        int result = request(d, NNL_OPCODE_WRITE, b->address, b->run, b->jump, 0, b->count);
        if (result) return result;
    }
    return NNL_OK;
}

/* Move a tensor to (`in`) or from (`out`) the board, a frame at a time. */
static int move(nnl_device *d, const nnl_tensor *t, const int8_t *in, int8_t *out) {
    for (uint32_t bank = 0; bank < 4; bank++) {
        for (uint32_t first = 0; first < t->bank_words[bank]; first += NNL_FRAME_WORDS) {
            uint32_t left = t->bank_words[bank] - first, count = left < NNL_FRAME_WORDS ? left : NNL_FRAME_WORDS;
            uint32_t address = t->address[bank] + 4 * first;
            uint8_t *words = d->frame + (in ? NNL_REQUEST_BYTES : NNL_RESPONSE_BYTES);
            int result = in ? NNL_OK : request(d, NNL_OPCODE_READ, address, count, 1, count, 0);
            if (result) return result;
            for (uint32_t i = 0; i < 4 * count; i++) {
                uint32_t at = 4 * first + i, row = bank + at / t->row_bytes * 4, byte = at % t->row_bytes;
                uint32_t column = byte / t->pixel_bytes, channel = byte % t->pixel_bytes;
                int inside = row < t->rows && column < t->columns && channel < t->channels;
                size_t index = ((size_t)row * t->columns + column) * t->channels + channel;
                if (in) words[i] = inside ? (uint8_t)in[index] : 0;
                else if (inside) out[index] = (int8_t)words[i];
            }
            if (in && (result = request(d, NNL_OPCODE_WRITE, address, count, 1, 0, count))) return result;
        }
    }
    return NNL_OK;
}

static int wait_done(nnl_device *d) {
    for (int polls = 0; !d->done; polls++) {
        int length = receive(d, d->timeout_ms);
        const uint8_t *h = d->frame;
        if (length == NNL_PORT - 1) return NNL_PORT;
        if (length == NNL_RESPONSE_BYTES + 12 && h[0] == NNL_ANSWER_DONE && h[1] == d->start_sequence) {
            d->status = get32(h + 4); d->cycles = get32(h + 8);
            break;
        }
        if (length > 0) continue;
        int result = request(d, NNL_OPCODE_READ, NNL_ADDRESS_REGISTERS + NNL_REGISTER_STATUS, 3, 1, 3, 0);
        if (result) return result;
        if (!d->done) { d->status = get32(h + 4); d->cycles = get32(h + 8); }
        if (!(d->status & NNL_STATUS_BUSY)) break;
        if (polls == POLLS) return request(d, NNL_OPCODE_RESET, 0, 1, 1, 0, 0) ? NNL_SILENT : NNL_LATE;
    }
    return d->status & NNL_STATUS_ERROR ? NNL_DEVICE : NNL_OK;
}

/* Open a session, and load the model if the board is the right one. */
static int load(nnl_device *d) {
    d->session = d->session == UINT16_MAX ? 1 : d->session + 1; /* a new one: what comes of the old is refused */
    int result = request(d, NNL_OPCODE_HELLO, 0, 1, 1, NNL_HELLO_WORDS, 0);
    if (result) return result;
    const uint8_t *w = d->frame + NNL_RESPONSE_BYTES;
    unsigned most = get32(w) >> 16;
    d->clock_hz = get32(w + 4);
    if (w[0] != NNL_LINK_VERSION || get32(w + 12) != NNL_MAGIC || get32(w + 16) != NNL_ISA_VERSION ||
        get32(w + 20) != d->model->config_hash || most < NNL_FRAME_WORDS) return NNL_OTHER;
    /* Whatever ran there: memories take no words while a program runs. */
    if ((result = request(d, NNL_OPCODE_RESET, 0, 1, 1, 0, 0))) return result;
    result = write_bursts(d, d->model->bursts, d->model->burst_count);
    d->loaded = !result;
    return result;
}

static int run_once(nnl_device *d, const nnl_region *r, const int8_t *const inputs[], int8_t *const outputs[]) {
    int result = d->loaded ? NNL_OK : load(d);
    uint32_t cycles = 0;
    for (unsigned i = 0; !result && i < r->input_count; i++) result = move(d, &r->inputs[i], inputs[i], NULL);
    for (unsigned i = 0; !result && i < r->part_count; i++) {
        if ((result = write_bursts(d, r->parts[i].bursts, r->parts[i].burst_count))) break;
        put32(d->frame + NNL_REQUEST_BYTES, r->parts[i].program_start);
        put32(d->frame + NNL_REQUEST_BYTES + 4, 1);
        d->done = 0;
        d->start_sequence = d->sequence + 1;
        result = request(d, NNL_OPCODE_START, NNL_ADDRESS_REGISTERS + NNL_REGISTER_PROGRAM_START, 2, 1, 0, 2);
        if (!result) result = wait_done(d);
        cycles += d->cycles;
    }
    for (unsigned i = 0; !result && i < r->output_count; i++) result = move(d, &r->outputs[i], NULL, outputs[i]);
    d->cycles = cycles;
    if (result) d->loaded = 0;
    return result;
}

void nnl_init(nnl_device *d, const nnl_port *port, const nnl_model_t *model, uint16_t session) {
    memset(d, 0, sizeof *d);
    d->port = port; d->model = model; d->session = session; d->timeout_ms = 300;
}

int nnl_run(nnl_device *d, unsigned region, const int8_t *const inputs[], int8_t *const outputs[]) {
    int result = NNL_LOST;
    for (int i = 0; i < RESTARTS && result == NNL_LOST; i++) result = run_once(d, &d->model->regions[region], inputs, outputs);
    return result;
}
