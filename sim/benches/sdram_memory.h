// An SDR SDRAM at the ports pins__* of a system in Verilator, with registers in the pins as an FPGA has them.
//
// It does what it is told and checks nothing: its log, a word a clock edge, is for nnloom.sim.sdram_model to judge.
// Each cycle: drive() sets what the system samples at the next edge, the model is evaluated, clock() takes the edge.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <vector>

#define SDRAM_PIN(name) pins___05F##name // as Verilator writes two underscores

class Memory {
    struct Pins {
        unsigned cke = 1, cs_n = 1, ras_n = 1, cas_n = 1, we_n = 1, ba = 0, a = 0, dqm = 3, dq = 0, dq_oe = 0;
    };
    struct Word {
        uint64_t edge;
        uint16_t value;
    };
    static const int BANKS = 4, COLUMNS = 512;
    std::vector<uint16_t> words;
    unsigned rows[BANKS] = {}, burst = 1, latency = 2;
    std::deque<Word> reads;
    std::deque<uint32_t> writes; // words that are still to be sampled
    uint64_t edge = 0;
    Pins registers;         // of the outputs
    uint16_t arriving = 0, arrived = 0; // before and behind the registers of the inputs
    FILE *log;

    uint32_t place(const Pins &pins, unsigned index) const {
        const unsigned first = pins.a % COLUMNS;
        const unsigned column = first / burst * burst + (first + index) % burst;
        return (rows[pins.ba] * BANKS + pins.ba) * COLUMNS + column;
    }

    void step(const Pins &pins) {
        const unsigned code = pins.cs_n ? 7 : pins.ras_n << 2 | pins.cas_n << 1 | pins.we_n;
        if (code == 0) burst = 1 << (pins.a & 7), latency = pins.a >> 4 & 7;
        if (code == 3) rows[pins.ba] = pins.a;
        if (code == 4) {
            writes.clear();
            for (unsigned i = 0; i < burst; i++) writes.push_back(place(pins, i));
        }
        if (code == 5)
            for (unsigned i = 0; i < burst; i++) reads.push_back({edge + latency + i, words[place(pins, i)]});
        if (!writes.empty()) {
            uint16_t &word = words[writes.front()];
            if (!(pins.dqm & 1)) word = (word & 0xFF00) | (pins.dq & 0xFF);
            if (!(pins.dqm & 2)) word = (word & 0xFF) | (pins.dq & 0xFF00);
            writes.pop_front();
        }
        edge++;
        const bool drives = !reads.empty() && reads.front().edge == edge;
        arriving = drives ? reads.front().value : 0xBEEF;
        if (drives) reads.pop_front();
        if (log) {
            uint64_t entry = pins.cke | pins.cs_n << 1 | pins.ras_n << 2 | pins.cas_n << 3 | pins.we_n << 4;
            entry |= (uint64_t)(pins.ba << 5 | pins.a << 7) | (uint64_t)pins.dqm << 20 | (uint64_t)pins.dq << 22;
            entry |= (uint64_t)pins.dq_oe << 38 | (uint64_t)drives << 39 | (uint64_t)arriving << 40;
            fwrite(&entry, 8, 1, log);
        }
    }

  public:
    int stall_percent = 0;

    Memory(size_t size, const char *log_file, const char *) : words(size / 2), log(*log_file ? fopen(log_file, "wb") : 0) {}

    void reset() {}
    void flush() { if (log) fflush(log); }
    void set_faults(uint32_t, uint32_t) { fprintf(stderr, "SDRAM has no faults\n"), abort(); }
    void fill(FILE *file) {
        if (!fread(words.data(), 2, words.size(), file)) fprintf(stderr, "nothing to fill memory with\n"), abort();
    }
    void damage(uint32_t start, uint32_t end) {
        for (size_t i = start / 2; i < (end + 1) / 2 && i < words.size(); i++) words[i] ^= 0x5A5A;
    }

    template <class Top> void drive(Top &top) { top.SDRAM_PIN(dq_i) = arrived; }

    template <class Top> void clock(Top &top) {
        arrived = arriving;
        step(registers);
        registers = {top.SDRAM_PIN(cke), top.SDRAM_PIN(cs_n), top.SDRAM_PIN(ras_n), top.SDRAM_PIN(cas_n),
                     top.SDRAM_PIN(we_n), top.SDRAM_PIN(ba), top.SDRAM_PIN(a), top.SDRAM_PIN(dqm),
                     top.SDRAM_PIN(dq_o), top.SDRAM_PIN(dq_oe)};
    }
};
