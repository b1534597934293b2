// Test bench of the engine: its ports for cocotb, a player of write files, a log of the engine's writes, so that Python
// is not needed in every cycle. Plusargs: +writes=FILE (lines "address data" in hexadecimal, played when `play` rises),
// +log=FILE ("cycle bank granule enable data" of each write of the engine), +waves=FILE (Icarus).
`timescale 1ns / 1ps
module nnloom_tb #(
    parameter DATA_BITS = 8
) (
    input clk, input rst,
    input play, output reg playing,
    input req_valid, output req_ready, input req_write, input [31:0] req_address, input [31:0] req_data,
    output rsp_valid, input rsp_ready, output [31:0] rsp_data,
    output busy,
    output write_valid, output [1:0] write_bank, output [15:0] write_granule, output [1:0] write_enable,
    output [DATA_BITS-1:0] write_data
);
  reg [8*1024-1:0] writes_path, log_path, waves_path;
  integer writes_file, log_file;
  reg player_valid;
  reg [31:0] player_address, player_data, next_address, next_data;
  reg [63:0] cycle;
  reg started;
  wire accepted;
  assign req_ready = accepted & ~player_valid;

  initial begin
    playing = 0; player_valid = 0; started = 0; cycle = 0; log_file = 0; writes_path = 0;
    if ($value$plusargs("writes=%s", writes_path)) begin end
    if ($value$plusargs("log=%s", log_path)) log_file = $fopen(log_path, "w");
`ifdef __ICARUS__
    if ($value$plusargs("waves=%s", waves_path)) begin $dumpfile(waves_path); $dumpvars(0, nnloom_tb); end
`endif
  end

  always @(posedge clk) begin
    cycle <= cycle + 1;
    if (!play) started <= 0;
    if (play && !started) begin
      writes_file = $fopen(writes_path, "r");
      playing <= 1; started <= 1;
    end else if (playing && (!player_valid || accepted)) begin
      if ($fscanf(writes_file, "%h %h", next_address, next_data) == 2) begin
        player_valid <= 1; player_address <= next_address; player_data <= next_data;
      end else begin
        player_valid <= 0; playing <= 0;
        $fclose(writes_file);
      end
    end
    if (write_valid && log_file != 0)
      $fwrite(log_file, "%h %h %h %h %h\n", cycle, write_bank, write_granule, write_enable, write_data);
    if (!busy && log_file != 0 && cycle[3:0] == 0) $fflush(log_file);
  end

  nnloom_engine dut (
      .clk(clk), .rst(rst),
      .req_valid(player_valid | req_valid), .req_ready(accepted),
      .req_write(player_valid | req_write),
      .req_address(player_valid ? player_address : req_address), .req_data(player_valid ? player_data : req_data),
      .rsp_valid(rsp_valid), .rsp_ready(rsp_ready), .rsp_data(rsp_data),
      .busy(busy),
      .write_valid(write_valid), .write_bank(write_bank), .write_granule(write_granule),
      .write_enable(write_enable), .write_data(write_data)
  );
endmodule
