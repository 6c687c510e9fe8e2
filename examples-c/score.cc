// Scores all rows of two sites that a marginalization model could see, likeliest first.
//
//     score_cc model.onnx
#include <hone.hpp>

#include <algorithm>
#include <cstdio>
#include <vector>

int main(int argc, char **argv) try {
    if (argc != 2) {
        std::fprintf(stderr, "usage: %s MODEL\n", argv[0]);
        return 2;
    }
    hone::Engine engine;
    hone::Scorer scorer(hone::Model::load(engine, argv[1]));
    std::vector<std::int64_t> rows;
    const auto values = static_cast<std::int64_t>(std::min<std::size_t>(scorer.vocab(), 8));
    for (std::int64_t a = 0; a < values; a++) {
        for (std::int64_t b = 0; b < values; b++) {
            std::vector<std::int64_t> row(scorer.length(), -1);
            row.at(0) = a;
            row.at(1) = b;
            rows.insert(rows.end(), row.begin(), row.end());
        }
    }
    const auto log_p = scorer.score(rows);
    std::vector<std::size_t> order(log_p.size());
    for (std::size_t i = 0; i < order.size(); i++) order[i] = i;
    std::sort(order.begin(), order.end(), [&](auto a, auto b) { return log_p[a] > log_p[b]; });
    for (auto i : order) {
        const auto *row = &rows[i * scorer.length()];
        std::printf("%lld %lld  %8.4f\n", static_cast<long long>(row[0]),
                    static_cast<long long>(row[1]), log_p[i]);
    }
    // How likely the first of them is, from both sides.
    const auto bounds = scorer.bracket(
        {rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(scorer.length())});
    std::printf("log p(x0, x1) between %.4f and %.4f\n", bounds.lower[0], bounds.upper[0]);
    // The second site given the first, of the last row.
    std::vector<std::int64_t> row(rows.end() - static_cast<std::ptrdiff_t>(scorer.length()),
                                  rows.end());
    std::vector<std::uint8_t> given(row.size(), 0);
    given.at(0) = 1;
    std::printf("log p(x1 | x0) = %.4f\n", scorer.condition(row, given).at(0));
    const auto drawn = scorer.impute(row);
    return drawn.at(0) == row.at(0) && drawn.at(1) == row.at(1) ? 0 : 1;
} catch (const hone::Error &error) {
    std::fprintf(stderr, "score_cc: %s\n", error.what());
    return 1;
}
