/* The driver on Linux or macOS: example PORT BAUD <inputs >outputs, each inference's int8 tensors one after the other.
 *
 *     cc -std=c99 -O2 -o example example.c nnloom.c
 *     ./example /dev/ttyUSB0 1000000 <input.bin >output.bin
 *
 * On a microcontroller only the two functions of the port are different.
 */
#define _DEFAULT_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#include "model.h"

static int send_all(void *context, const uint8_t *data, size_t size) {
    while (size) {
        ssize_t sent = write(*(int *)context, data, size);
        if (sent < 0) return -1;
        data += sent;
        size -= (size_t)sent;
    }
    return 0;
}

static int receive_some(void *context, uint8_t *data, size_t size, unsigned milliseconds) {
    struct pollfd ready = {*(int *)context, POLLIN, 0};
    int count = poll(&ready, 1, (int)milliseconds);
    return count > 0 ? (int)read(ready.fd, data, size) : count;
}

static int open_port(const char *path, long baud) {
    static const struct { long baud; speed_t code; } speeds[] = {{115200, B115200}, {1000000, B1000000}, {3000000, B3000000}};
    int file = open(path, O_RDWR | O_NOCTTY);
    struct termios settings;
    if (file < 0 || tcgetattr(file, &settings)) return -1;
    cfmakeraw(&settings);
    for (size_t i = 0; i < sizeof speeds / sizeof *speeds; i++)
        if (speeds[i].baud == baud) cfsetspeed(&settings, speeds[i].code);
    return tcsetattr(file, TCSANOW, &settings) ? -1 : file;
}

static int8_t *tensors(const nnl_tensor *t, unsigned count, int8_t *of[], size_t sizes[]) {
    for (unsigned i = 0; i < count; i++) {
        sizes[i] = (size_t)t[i].rows * t[i].columns * t[i].channels;
        if (!(of[i] = malloc(sizes[i]))) exit(1);
    }
    return of[0];
}

int main(int count, char **arguments) {
    const nnl_region *region = &nnl_model.regions[0];
    int8_t *inputs[8], *outputs[8];
    size_t input_sizes[8], output_sizes[8];
    static nnl_device device;
    int file = count == 3 ? open_port(arguments[1], atol(arguments[2])) : -1;
    nnl_port port = {&file, send_all, receive_some};
    if (file < 0 || region->input_count > 8 || region->output_count > 8) {
        fprintf(stderr, "usage: %s PORT BAUD <inputs >outputs\n", arguments[0]);
        return 2;
    }
    tensors(region->inputs, region->input_count, inputs, input_sizes);
    tensors(region->outputs, region->output_count, outputs, output_sizes);
    nnl_init(&device, &port, &nnl_model, (uint16_t)getpid());
    for (;;) {
        for (unsigned i = 0; i < region->input_count; i++)
            if (fread(inputs[i], 1, input_sizes[i], stdin) != input_sizes[i]) return 0;
        int result = nnl_run(&device, 0, (const int8_t *const *)inputs, outputs);
        fprintf(stderr, "result %d, %lu cycles, %lu retries\n", result, (unsigned long)device.cycles, (unsigned long)device.retries);
        if (result) return 1;
        for (unsigned i = 0; i < region->output_count; i++) fwrite(outputs[i], 1, output_sizes[i], stdout);
        fflush(stdout);
    }
}
