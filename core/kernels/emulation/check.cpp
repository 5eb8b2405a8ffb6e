// Runs every entry point of the kernels on the CPU and compares it with double precision. Ends with 1 on any miss.
//
//   check [elementwise] [layer_norm] [attention] [embedding] [injection] [rows] [flat]
//
// With names, only those files are checked.
//
// Bounds. Let u be half the distance from 1 to the next number: 2^-24 for float32, 2^-11 for tf32, 2^-8 for bf16. An
// error is measured against the root of the sum of the squared terms of what is computed (reference.h): rounding
// errors add up like the terms themselves, at random. Every place in which a value is rounded to a type counts one u
// of that type, beside what float32 arithmetic costs. The checks of each file say which places those are.

#include "workbench.h"

int main(int count, char** arguments) {
    const std::pair<std::string, void (*)(Bench&)> checks[] = {
        {"elementwise", check_elementwise}, {"layer_norm", check_layer_norm}, {"attention", check_attention},
        {"embedding", check_embedding},     {"injection", check_injection},
        {"rows", check_rows},               {"flat", check_flat}};
    Bench bench;
    std::vector<std::string> wanted(arguments + 1, arguments + count);
    const bool all = wanted.empty();
    for (const auto& [name, check] : checks) {
        bench.random.seed(1);
        if (all || std::erase(wanted, name) > 0) check(bench);
    }
    for (const std::string& name : wanted) bench.table.miss(name, "no such check");
    return bench.table.report();
}
