"""What runs without nnloom: `nnloom export` puts copies beside the Verilog."""
