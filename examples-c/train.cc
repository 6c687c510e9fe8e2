// Fits y = Ax to samples with M-FAC as the optimizer, saves the state half way and goes on from it.
#include <hone.hpp>

#include <cstdio>
#include <random>
#include <vector>

namespace {

constexpr std::size_t weights_count = 24;

struct Task {
    std::vector<std::vector<float>> inputs;
    std::vector<float> outputs;

    Task() {
        std::mt19937 random(3);
        std::vector<float> truth(weights_count);
        auto uniform = [&] { return static_cast<float>(random() >> 8) / (1 << 23) - 1.0f; };
        for (auto &w : truth) w = uniform();
        for (int i = 0; i < 256; i++) {
            std::vector<float> x(weights_count);
            float y = 0;
            for (std::size_t j = 0; j < weights_count; j++) {
                x[j] = uniform() / static_cast<float>(1 + j);
                y += truth[j] * x[j];
            }
            inputs.push_back(x);
            outputs.push_back(y);
        }
    }

    // Half the squared error of one sample; its gradient to `gradient`.
    float loss(const std::vector<float> &weights, std::size_t i, std::vector<float> &gradient) const {
        float error = -outputs[i];
        for (std::size_t j = 0; j < weights_count; j++) error += weights[j] * inputs[i][j];
        for (std::size_t j = 0; j < weights_count; j++) gradient[j] = error * inputs[i][j];
        return error * error / 2;
    }
};

} // namespace

int main() try {
    const Task task;
    auto how = hone::options<hone_optimizer_options>();
    how.window = 64;
    how.damping = 1e-4;
    how.learning_rate = 2e-4;
    how.threads = 1;
    hone::Optimizer optimizer(weights_count, how);
    std::vector<float> weights(weights_count), gradient(weights_count);
    auto epoch = [&](hone::Optimizer &with) {
        float total = 0;
        for (std::size_t i = 0; i < task.inputs.size(); i++) {
            total += task.loss(weights, i, gradient);
            with.step(weights, gradient);
        }
        return total / static_cast<float>(task.inputs.size());
    };
    const float first = epoch(optimizer);
    for (int i = 0; i < 5; i++) epoch(optimizer);
    optimizer.save("train_cc.state");

    hone::Optimizer resumed(weights_count, how);
    resumed.restore("train_cc.state");
    float last = first;
    for (int i = 0; i < 5; i++) last = epoch(resumed);
    std::printf("mean loss %.5f -> %.7f in %llu steps\n", static_cast<double>(first),
                static_cast<double>(last), static_cast<unsigned long long>(resumed.steps()));
    return last < first / 10 ? 0 : 1;
} catch (const hone::Error &error) {
    std::fprintf(stderr, "train_cc: %s\n", error.what());
    return 1;
}
