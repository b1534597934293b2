// AXI4 memory behind the ports memory__* of a system in Verilator: latency, a rate, random stalls, faults.
//
// Each cycle: drive() sets the memory's outputs, the model is evaluated, clock() takes what both sides agreed on.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#define MEMORY_PORT(name) memory___05F##name // as Verilator writes two underscores

class Memory {
    struct Burst {
        uint32_t address;
        int beats;
        uint64_t due; // cycle of its first beat
    };
    std::vector<uint8_t> bytes;
    std::deque<Burst> reads;
    Burst write{0, 0, 0};
    bool writing = false, offered = false, answering = false, failed = false;
    uint64_t cycle = 0, next_beat = 0;
    uint32_t state = 1;
    uint32_t fault_start = 0, fault_end = 0;

    bool stalls() {
        state ^= state << 13, state ^= state >> 17, state ^= state << 5;
        return (int)(state % 100) < stall_percent;
    }
    bool faulty(uint32_t address, int count) const { return address < fault_end && address + count > fault_start; }

  public:
    int latency, beat_cycles; // cycles from an address to its first beat, and of a beat
    int stall_percent = 0;    // of cycles in which a channel pauses

    Memory(size_t size, const char *latency, const char *beat_cycles)
        : bytes(size), latency(atoi(latency)), beat_cycles(atoi(beat_cycles)) {}

    void flush() {}
    void reset() { reads.clear(); writing = offered = answering = false; }
    // Bytes [start, end) are answered with SLVERR.
    void set_faults(uint32_t start, uint32_t end) { fault_start = start, fault_end = end; }
    // What it holds from address 0 on.
    void fill(FILE *file) {
        if (!fread(bytes.data(), 1, bytes.size(), file)) fprintf(stderr, "nothing to fill memory with\n"), abort();
    }
    // What the memory has lost: bytes [start, end) hold something else.
    void damage(uint32_t start, uint32_t end) {
        for (size_t i = start; i < end && i < bytes.size(); i++) bytes[i] ^= 0x5A;
    }

    template <class Top> void drive(Top &top) {
        const int width = sizeof top.MEMORY_PORT(rdata);
        top.memory_ready = 1;
        top.MEMORY_PORT(arready) = reads.size() < 8 && !stalls();
        offered = offered || (!reads.empty() && cycle >= reads.front().due && cycle >= next_beat && !stalls());
        top.MEMORY_PORT(rvalid) = offered;
        if (offered) {
            const Burst &burst = reads.front();
            top.MEMORY_PORT(rlast) = burst.beats == 1;
            const bool wrong = faulty(burst.address, width) || burst.address + width > bytes.size();
            top.MEMORY_PORT(rresp) = wrong ? 2 : 0;
            uint64_t value = 0xEEEEEEEEEEEEEEEEull;
            if (!wrong) memcpy(&value, &bytes[burst.address], width);
            top.MEMORY_PORT(rdata) = value;
        }
        top.MEMORY_PORT(awready) = !writing && !answering && !stalls();
        top.MEMORY_PORT(wready) = writing && write.beats && !stalls();
        top.MEMORY_PORT(bvalid) = answering;
        top.MEMORY_PORT(bresp) = failed ? 2 : 0;
    }

    template <class Top> void clock(Top &top) {
        const int width = sizeof top.MEMORY_PORT(rdata);
        if (top.MEMORY_PORT(arvalid) && top.MEMORY_PORT(arready)) {
            check(top.MEMORY_PORT(araddr), top.MEMORY_PORT(arlen) + 1, width);
            reads.push_back({top.MEMORY_PORT(araddr), top.MEMORY_PORT(arlen) + 1, cycle + latency});
        }
        if (offered && top.MEMORY_PORT(rready)) {
            offered = false;
            next_beat = cycle + beat_cycles;
            reads.front().address += width;
            if (--reads.front().beats == 0) reads.pop_front();
        }
        if (answering && top.MEMORY_PORT(bready)) answering = writing = false;
        if (writing && top.MEMORY_PORT(wvalid) && top.MEMORY_PORT(wready)) {
            const bool wrong = faulty(write.address, width) || write.address + width > bytes.size();
            failed = failed || wrong;
            const uint64_t value = top.MEMORY_PORT(wdata);
            for (int i = 0; i < width && !wrong; i++)
                if (top.MEMORY_PORT(wstrb) >> i & 1) bytes[write.address + i] = value >> 8 * i;
            write.address += width;
            const bool last = --write.beats == 0;
            if (last != (bool)top.MEMORY_PORT(wlast)) fprintf(stderr, "WLAST on the wrong beat\n"), abort();
            answering = last;
        }
        if (top.MEMORY_PORT(awvalid) && top.MEMORY_PORT(awready)) {
            check(top.MEMORY_PORT(awaddr), top.MEMORY_PORT(awlen) + 1, width);
            write = {top.MEMORY_PORT(awaddr), top.MEMORY_PORT(awlen) + 1, 0};
            writing = true, failed = false;
        }
        cycle++;
    }

  private:
    static void check(uint32_t address, int beats, int width) {
        if (address % width || address / 4096 != (address + beats * width - 1) / 4096)
            fprintf(stderr, "burst of %d beats at %#x is not aligned, or crosses 4 KiB\n", beats, address), abort();
    }
};
