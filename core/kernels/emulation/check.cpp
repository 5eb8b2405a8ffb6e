// Runs every entry point of the kernels on the CPU and compares it with double precision. Ends with 1 on any miss.
//
//   check [quick]      `quick` leaves out the large sizes, for a build with sanitizers
//
// Bounds. Let u be half the distance from 1 to the next number: 2^-24 for float32, 2^-11 for tf32, 2^-8 for bf16. An
// error is measured against the root of the sum of the squared terms of what is computed (reference.h): rounding
// errors add up like the terms themselves, at random. Every place in which a value is rounded to a type counts one u
// of that type, beside what float32 arithmetic costs. The checks of each file say which places those are.

#include "workbench.h"

int main(int count, char** arguments) {
    Bench bench;
    bench.quick = count > 1 && std::string(arguments[1]) == "quick";
    check_elementwise(bench);
    check_layer_norm(bench);
    check_attention(bench);
    return bench.table.report();
}
