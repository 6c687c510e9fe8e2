// The C++ wrapper: owners, exceptions, observers, timeouts.
#include "check.h"

#include <algorithm>
#include <atomic>
#include <hone.hpp>
#include <type_traits>

std::string version_of_the_other_unit();

namespace {

template <class Call> hone_code code_of(Call call) {
    try {
        call();
    } catch (const hone::Error &error) {
        CHECK(error.what()[0] != '\0');
        return error.code();
    }
    return HONE_CODE_OK;
}

static_assert(!std::is_copy_constructible_v<hone::Engine>);
static_assert(std::is_nothrow_move_constructible_v<hone::Job>);
static_assert(std::is_nothrow_move_assignable_v<hone::Model>);

void numbers() {
    hone::Gradients gradients(3, 2);
    for (float k = 1; k < 4; k++) gradients.push({k, 1 - k});
    CHECK(gradients.count() == 3);
    auto how = hone::options<hone_fisher_options>();
    how.damping_absolute = 0.5;
    hone::Fisher fisher(gradients, how);
    const auto diagonal = fisher.diagonal();
    CHECK(diagonal.size() == 2 && diagonal[0] > 0 && diagonal[0] <= 2);
    const auto product = fisher.apply({1, 0});
    CHECK(static_cast<double>(product[0]) > 0.999 * diagonal[0]);
    CHECK(fisher.element(1, 1) == fisher.element(1, 1) && fisher.damping() == 0.5);
    std::vector<float> weights{1, 2};
    std::vector<std::uint8_t> mask{1, 1};
    auto half = hone::options<hone_weights_options>();
    half.sparsity = 0.5;
    CHECK(hone::prune_weights(gradients, weights, &mask, nullptr, 0, half) >= 0);
    CHECK(mask[0] + mask[1] == 1);
    mask.pop_back();
    CHECK(code_of([&] { hone::prune_weights(gradients, weights, &mask, nullptr, 0, half); }) ==
          HONE_CODE_INVALID_ARGUMENT);

    hone::Optimizer optimizer(2);
    optimizer.step(weights, {1, 1});
    hone::Optimizer moved = std::move(optimizer);
    CHECK(moved.steps() == 1 && optimizer.c_handle() == nullptr);
    CHECK(code_of([&] { moved.step(weights, {1}); }) == HONE_CODE_INVALID_ARGUMENT);
    CHECK(code_of([&] { moved.restore("no-such-file"); }) == HONE_CODE_IO);
}

// What an observer holds lives until the job has let go of it, and not longer.
void jobs(const char *model_path, const char *samples_path) {
    hone::Engine engine;
    CHECK(code_of([&] { hone::Model::load(engine, "gone.onnx"); }) == HONE_CODE_IO);
    auto model = hone::Model::load(engine, model_path);
    CHECK(model.inspect().number("/opset") > 0);
    const auto bytes = model.bytes();
    auto copy = hone::Model::from_bytes(engine, bytes.first, bytes.second);
    auto few = hone::options<hone_samples_options>();
    few.limit = 8;
    auto samples = hone::Samples::load(copy, samples_path, few);
    CHECK(samples.count() == 8);

    auto held = std::make_shared<std::atomic<int>>(0);
    std::weak_ptr<std::atomic<int>> watched = held;
    hone::Observer observer = [held](const hone_progress &) { ++*held; };
    held.reset();
    auto how = hone::options<hone_prune_options>();
    CHECK(code_of([&] { hone::prune(model, samples, how, observer); }) ==
          HONE_CODE_INVALID_ARGUMENT);
    how.sparsity = 0.5;
    how.gradients = 8;
    how.stages = 1;
    how.match_statistics = HONE_CHOICE_OFF;
    int events = 0;
    auto job = hone::prune(model, samples, how, [&, observer](const hone_progress &now) {
        observer(now);
        events++;
    });
    observer = nullptr;
    CHECK(job.fd() >= 0 && job.id() > 0);
    job.wait();
    CHECK(events > 3 && watched.expired());
    CHECK(job.progress().state == HONE_JOB_STATE_COMPLETED);
    CHECK(job.report().json().find("hone.report/1") != std::string::npos);
    auto pruned = job.model();

    auto judged = hone::evaluate(pruned, &model, samples);
    judged.wait();
    CHECK(judged.report().number("/divergence/agreement") <= 1);
    CHECK(code_of([&] { judged.model(); }) == HONE_CODE_CONFLICT);

    auto short_run = hone::options<hone_finetune_options>();
    short_run.steps = 2;
    short_run.batch = 4;
    short_run.window = 2;
    auto tuning = hone::finetune(pruned, samples, short_run);
    tuning.wait();
    CHECK(tuning.report().number("/training_steps") == 2);
    auto weights = tuning.model().weights();
    CHECK(std::count(weights.begin(), weights.end(), 0.0f) * 2 >= static_cast<long>(weights.size()));
    CHECK(model.with_weights(weights).weights() == weights);
    CHECK(code_of([&] { model.with_weights({1}); }) == HONE_CODE_INVALID_ARGUMENT);

    how.gradients = 1000000;
    auto endless = hone::prune(model, samples, how);
    using namespace std::chrono_literals;
    CHECK(endless.wait_for(1500us) <= HONE_JOB_STATE_RUNNING);
    endless.cancel();
    CHECK(endless.wait_for(1min) == HONE_JOB_STATE_CANCELLED);
    CHECK(code_of([&] { endless.wait(); }) == HONE_CODE_CANCELLED);
}

// A marginalization model from rows to answers.
void mam() {
    hone::Engine engine;
    std::vector<std::int64_t> rows;
    for (int i = 0; i < 64; i++) rows.insert(rows.end(), {i % 2, i % 2, i / 2 % 2});
    auto how = hone::options<hone_mam_train_options>();
    how.conditional_steps = how.marginal_steps = 20;
    how.batch = 16;
    how.hidden = 8;
    how.layers = 1;
    how.report_every = 10;
    how.network = HONE_NETWORK_TRANSFORMER;
    how.heads = 2;
    how.optimizer = HONE_MAM_OPTIMIZER_MFAC;
    how.window = 4;
    CHECK(code_of([&] { hone::train_mam(engine, rows, 5, how); }) == HONE_CODE_INVALID_ARGUMENT);
    int events = 0;
    auto job = hone::train_mam(engine, rows, 3, how, [&](const hone_progress &) { events++; });
    job.wait();
    CHECK(events > 4 && job.report().number("/length") == 3);
    auto ising = hone::options<hone_ising>();
    ising.rows = ising.columns = 2;
    ising.field = 0.1;
    how.conditional_steps = how.marginal_steps = 0;
    how.ising = &ising;
    how.energy_steps = 20;
    auto learning = hone::train_mam(engine, how);
    learning.wait();
    CHECK(learning.report().number("/length") == 4);
    hone::Scorer scorer(job.model());
    CHECK(scorer.length() == 3 && scorer.vocab() == 2);
    std::vector<double> log_q;
    CHECK(scorer.sample(5, hone::options<hone_sample_options>(), &log_q).size() == 15);
    CHECK(log_q.size() == 5 && log_q[4] < 0);
    auto draws = hone::options<hone_sample_options>();
    draws.draws = 4;
    const auto drawn = scorer.impute({1, -1, -1, -1, -1, 0}, draws, &log_q);
    CHECK(drawn.size() == 24 && log_q.size() == 8 && drawn[9] == 1 && drawn[14] == 0);
    auto by_phi = hone::options<hone_score_options>();
    by_phi.half = HONE_HALF_PHI;
    const std::vector<std::uint8_t> known{1, 0, 0};
    by_phi.known = known.data();
    CHECK(scorer.score({1, 7, 7}, by_phi) == scorer.score({1, -1, -1}));
    CHECK(scorer.distributions({1, 7, 7}, by_phi).size() == 6);
    const auto bounds = scorer.bracket({1, 1, 0, 0, 0, 1});
    CHECK(bounds.lower.size() == 2 && bounds.lower[1] <= bounds.upper[1]);
    CHECK(bounds.lower_error[0] >= 0 && bounds.upper_error[1] >= 0);
    const auto sum = scorer.normaliser();
    CHECK(sum.exact == 1 && sum.draws == 8);
    auto corrected = hone::options<hone_score_options>();
    corrected.half = HONE_HALF_THETA;
    const double raw = scorer.score({1, 1, 0}, corrected)[0];
    corrected.log_normaliser = sum.log_sum;
    CHECK(scorer.score({1, 1, 0}, corrected)[0] == raw - sum.log_sum);
    auto checked = hone::check(scorer, {1, 1, 0, 0, 0, 1});
    checked.wait();
    CHECK(checked.report().number("/rows") == 2);
}

void logs() {
    auto held = std::make_shared<int>(0);
    std::weak_ptr<int> watched = held;
    hone::set_log(HONE_LOG_LEVEL_TRACE, [held](hone_log_level, const char *, const char *) {});
    held.reset();
    CHECK(!watched.expired());
    hone::set_log(HONE_LOG_LEVEL_OFF, nullptr);
    CHECK(watched.expired());
}

} // namespace

int main(int argc, char **argv) {
    CHECK(argc == 3);
    CHECK(version_of_the_other_unit() == hone::version());
    logs();
    numbers();
    jobs(argv[1], argv[2]);
    mam();
    return 0;
}
