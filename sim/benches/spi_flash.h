// An SPI flash at the pins of a simulated board: commands 0x03, 0x0B, 0x9F and 0xAB. What the pins do is logged, for the
// model that checks it (nnloom/sim/flash_model.py): cycle, then cs_n, sck, mosi and miso in bits 3 to 0.
#pragma once
#include <cstdint>
#include <cstdio>
#include <vector>

#define FLASH_PIN(name) flash___05F##name // as Verilator writes two underscores

class Flash {
  public:
    Flash(const char *file, const char *log_file, bool powered_down) : file(file), asleep(powered_down) {
        load();
        log = fopen(log_file, "wb");
    }

    // Take over what the file holds, and have the log written out.
    void load() {
        content.clear();
        if (FILE *source = fopen(file, "rb")) {
            for (int byte; (byte = fgetc(source)) != EOF;) content.push_back((uint8_t)byte);
            fclose(source);
        }
        if (log) fflush(log);
    }

    template <class Top> void drive(Top &top) { top.FLASH_PIN(miso) = out; }

    // After a rising edge of the system's clock.
    template <class Top> void clock(Top &top, uint64_t cycle) {
        const int cs_n = top.FLASH_PIN(cs_n), sck = top.FLASH_PIN(sck), mosi = top.FLASH_PIN(mosi);
        if (cs_n) {
            if (command == 0xAB) asleep = false;
            bits = 0, command = -1, value = 0;
        } else if (sck && !was_sck) {
            value = value << 1 | mosi;
            bits++;
            if (bits == 8 && (!asleep || value == 0xAB)) command = (int)value;
            if (bits == 32) address = value & 0xFFFFFF;
        } else if (!sck && was_sck) {
            const uint64_t first = command == 0x03 ? 32 : command == 0x0B ? 40 : command == 0x9F ? 8 : bits + 1;
            if (bits >= first) {
                const uint64_t octet = (bits - first) / 8, bit = (bits - first) % 8;
                static const uint8_t identity[3] = {0xEF, 0x40, 0x18};
                const uint64_t place = (address + octet) & 0xFFFFFF;
                const uint8_t byte = command == 0x9F ? identity[octet % 3] : place < content.size() ? content[place] : 0xFF;
                out = byte >> (7 - bit) & 1;
            }
        }
        was_sck = sck;
        const int pins = cs_n << 3 | sck << 2 | mosi << 1 | out;
        if (pins != logged) {
            const uint64_t entry = cycle << 4 | pins;
            fwrite(&entry, 8, 1, log);
            logged = pins;
        }
    }

  private:
    const char *file;
    FILE *log = nullptr;
    std::vector<uint8_t> content;
    bool asleep;
    int out = 1, was_sck = 0, command = -1, logged = -1;
    uint64_t value = 0, bits = 0, address = 0;
};
