// Prunes a model to 2:4 zeros, shows the progress, and checks the result in memory.
//
//     prune_cc model.onnx calibration.npz pruned.onnx
#include <hone.hpp>

#include <cstdio>
#include <cstdlib>

int main(int argc, char **argv) try {
    if (argc != 4) {
        std::fprintf(stderr, "usage: %s MODEL SAMPLES OUTPUT\n", argv[0]);
        return 2;
    }
    hone::Engine engine;
    auto model = hone::Model::load(engine, argv[1]);
    auto reading = hone::options<hone_samples_options>();
    reading.limit = 64;
    auto samples = hone::Samples::load(model, argv[2], reading);

    // A real run leaves out `limit`, `gradients` and `stages`.
    auto how = hone::options<hone_prune_options>();
    how.pattern = "2:4";
    how.gradients = 64;
    how.stages = 1;
    int events = 0;
    auto job = hone::prune(model, samples, how, [&](const hone_progress &now) {
        events++;
        std::printf("%s %.0f %%\n", now.phase,
                    now.total == 0 ? 0.0 : 100.0 * static_cast<double>(now.done) / static_cast<double>(now.total));
    });
    job.wait();

    auto pruned = job.model();
    auto compared = hone::evaluate(pruned, &model, samples);
    compared.wait();
    std::printf("zeros %.3f, outputs moved by %.3f, %d events\n",
                job.report().number("/total/sparsity"),
                compared.report().number("/divergence/relative_error"), events);
    pruned.save(argv[3]);
    return 0;
} catch (const hone::Error &error) {
    std::fprintf(stderr, "prune_cc: %s\n", error.what());
    return 1;
}
