// Runs every entry point of the kernels on the CPU and compares it with double precision. Exits with 1 if a check
// fails.
//
//   check [elementwise] [layer_norm] [attention] [embedding] [injection] [rows] [flat]
//
// Names restrict the checks to these files.
//
// Error bounds. Let u be the unit roundoff, half the distance from 1 to the next number: 2^-24 for float32, 2^-11 for
// tf32, 2^-8 for bf16. The error of a sum is relative to the root of the sum of its squared terms (reference.h),
// because rounding errors add up at random. Each rounding of a value to a type adds one u of that type to the bound, in
// addition to the errors of float32 arithmetic. Each check_*.cpp lists its roundings.

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
    for (const std::string& name : wanted) bench.table.miss(name, "unknown check");
    return bench.table.report();
}
