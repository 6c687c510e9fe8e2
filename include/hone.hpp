/**
 * \file hone.hpp
 * hone.hpp - hone for C++17: the C API of hone.h with owners, exceptions and lambdas.
 *
 * Every class is a handle that can be moved and not copied, and frees what it holds. A call that
 * fails throws hone::Error. Options are the structs of hone.h, made by hone::options:
 *
 *     auto how = hone::options<hone_prune_options>();
 *     how.sparsity = 0.9;
 *     hone::Job job = hone::prune(model, samples, how, [](const hone_progress &p) { ... });
 *     job.wait();
 *
 * Observers run on threads of the library. An exception that leaves one ends the program. What
 * hone.h says of ownership and threads holds here as well.
 */
#ifndef HONE_HPP
#define HONE_HPP

#include "hone.h"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace hone {

/** Thrown when a call fails. */
class Error : public std::runtime_error {
public:
    /** What a call returned. */
    Error(hone_code code, const char *message) : std::runtime_error(message), code_(code) {}

    /** What kind of thing went wrong. */
    hone_code code() const noexcept { return code_; }

private:
    hone_code code_;
};

/** An options struct of hone.h with every field at its default. */
template <class Options> Options options() noexcept {
    Options made{};
    made.size = sizeof made;
    return made;
}

/** Says that a handle of C, given beside it, is to be owned: `hone::Model(hone::adopt, raw)`. */
struct Adopt {};

/** See hone::Adopt. */
inline constexpr Adopt adopt{};

namespace detail {

template <auto Free> struct Deleter {
    template <class T> void operator()(T *handle) const noexcept { Free(handle); }
};

/** An owner of a handle of C. */
template <class T, auto Free> using Owner = std::unique_ptr<T, Deleter<Free>>;

/** Turns an error of C into an exception. */
inline void check(hone_error *raw) {
    if (raw == nullptr) return;
    Owner<hone_error, hone_error_free> error(raw);
    throw Error(hone_error_code(raw), hone_error_message(raw));
}

/** A handle of C with its owner. */
template <class T, auto Free> class Handle {
public:
    Handle(Adopt, T *owned) noexcept : owned_(owned) {}

    /** The handle of C, borrowed. */
    T *c_handle() const noexcept { return owned_.get(); }

    /** The handle of C, which is the caller's from now on. */
    T *release() noexcept { return owned_.release(); }

private:
    Owner<T, Free> owned_;
};

} // namespace detail

/** A JSON document. */
class Report : public detail::Handle<hone_report, hone_report_free> {
public:
    using Handle::Handle;

    /** The document. */
    std::string json() const { return hone_report_json(c_handle()); }

    /** The number at a JSON pointer, such as "/total/sparsity". */
    double number(const std::string &pointer) const {
        double value = 0;
        detail::check(hone_report_number(c_handle(), pointer.c_str(), &value));
        return value;
    }
};

/** Where models run and jobs are done. */
class Engine : public detail::Handle<hone_engine, hone_engine_free> {
public:
    using Handle::Handle;

    /** An engine in this process, with every option at its default. */
    Engine() : Engine(options<hone_engine_options>()) {}

    /** See hone_engine_open. */
    explicit Engine(const hone_engine_options &how, const char *target = nullptr)
        : Handle(adopt, open(target, how)) {}

private:
    static hone_engine *open(const char *target, const hone_engine_options &how) {
        hone_engine *made = nullptr;
        detail::check(hone_engine_open(target, &how, &made));
        return made;
    }
};

/** An ONNX model. */
class Model : public detail::Handle<hone_model, hone_model_free> {
public:
    using Handle::Handle;

    /** Reads the model at a path; see hone_model_load. */
    static Model load(const Engine &engine, const std::string &path) {
        hone_model *made = nullptr;
        detail::check(hone_model_load(engine.c_handle(), path.c_str(), &made));
        return Model(adopt, made);
    }

    /** Decodes a model; `folder`, unless empty, is where external data is looked for. */
    static Model from_bytes(const Engine &engine, const void *data, std::size_t len,
                            const std::string &folder = {}) {
        hone_model *made = nullptr;
        const char *where = folder.empty() ? nullptr : folder.c_str();
        detail::check(hone_model_from_bytes(engine.c_handle(), data, len, where, &made));
        return Model(adopt, made);
    }

    /** Writes the model; the file appears whole or not at all. */
    void save(const std::string &path) const {
        detail::check(hone_model_save(c_handle(), path.c_str()));
    }

    /** The bytes of an ONNX file, borrowed from the model, and their number. */
    std::pair<const void *, std::size_t> bytes() const {
        std::pair<const void *, std::size_t> view{};
        detail::check(hone_model_bytes(c_handle(), &view.first, &view.second));
        return view;
    }

    /** What the model consists of and what hone can do with it. */
    Report inspect() const {
        hone_report *made = nullptr;
        detail::check(hone_model_inspect(c_handle(), &made));
        return Report(adopt, made);
    }

    /** The prunable weights as one vector; see hone_model_weights. */
    std::vector<float> weights() const {
        std::vector<float> out(static_cast<std::size_t>(inspect().number("/prunable_weights")));
        detail::check(hone_model_weights(c_handle(), out.data(), out.size()));
        return out;
    }

    /** A model like this one with other prunable weights. */
    Model with_weights(const std::vector<float> &weights) const {
        hone_model *made = nullptr;
        detail::check(hone_model_with_weights(c_handle(), weights.data(), weights.size(), &made));
        return Model(adopt, made);
    }
};

/** Samples that fit a model. */
class Samples : public detail::Handle<hone_samples, hone_samples_free> {
public:
    using Handle::Handle;

    /** Reads samples from a file or folder; see hone_samples_load. */
    static Samples load(const Model &model, const std::string &path,
                        const hone_samples_options &how = options<hone_samples_options>()) {
        hone_samples *made = nullptr;
        detail::check(hone_samples_load(model.c_handle(), path.c_str(), &how, &made));
        return Samples(adopt, made);
    }

    /** Copies samples from arrays of the caller; `labels` may be null. */
    static Samples
    from_tensors(const Model &model, const hone_named_tensor *inputs, std::size_t count,
                 const hone_tensor *labels = nullptr,
                 const hone_samples_options &how = options<hone_samples_options>()) {
        hone_samples *made = nullptr;
        detail::check(hone_samples_from_tensors(model.c_handle(), inputs, count, labels, &how, &made));
        return Samples(adopt, made);
    }

    /** The number of samples. */
    std::size_t count() const noexcept { return hone_samples_count(c_handle()); }
};

/** Hears of a job's progress; the reference is valid during the call. */
using Observer = std::function<void(const hone_progress &)>;

/** Work that goes on by itself. */
class Job : public detail::Handle<hone_job, hone_job_free> {
public:
    using Handle::Handle;

    /** Its number, unique in its engine. */
    std::uint64_t id() const noexcept { return hone_job_id(c_handle()); }

    /** Waits until the job is completed; throws its error if it is not. */
    void wait() const {
        detail::check(hone_job_wait(c_handle(), -1, nullptr));
        detail::check(hone_job_result(c_handle()));
    }

    /** Waits until the job has ended or the time is up, and says where it is then. */
    template <class Rep, class Period>
    hone_job_state wait_for(std::chrono::duration<Rep, Period> patience) const {
        const auto whole = std::chrono::ceil<std::chrono::milliseconds>(patience).count();
        const auto ms = static_cast<std::int64_t>(whole < 0 ? 0 : whole);
        hone_job_state state{};
        detail::check(hone_job_wait(c_handle(), ms, &state));
        return state;
    }

    /** How far it is; `phase` is borrowed from this handle. */
    hone_progress progress() const {
        auto now = options<hone_progress>();
        detail::check(hone_job_progress(c_handle(), &now));
        return now;
    }

    /** Readable once the job has ended. */
    int fd() const noexcept { return hone_job_fd(c_handle()); }

    /** Asks it to stop, without waiting. */
    void cancel() const noexcept { hone_job_cancel(c_handle()); }

    /** Throws unless the job is completed. */
    Report report() const {
        hone_report *made = nullptr;
        detail::check(hone_job_report(c_handle(), &made));
        return Report(adopt, made);
    }

    /** The model that the job made; throws unless the job is completed and makes one. */
    Model model() const {
        hone_model *made = nullptr;
        detail::check(hone_job_model(c_handle(), &made));
        return Model(adopt, made);
    }
};

namespace detail {

/** Submits a job by `start`, which takes the options; the observer is let go on success only. */
template <class Options, class Start> Job submit(Options how, Observer observer, Start start) {
    std::unique_ptr<Observer> kept;
    if (observer) {
        kept = std::make_unique<Observer>(std::move(observer));
        how.observer.call = [](void *context, const hone_progress *progress) noexcept {
            (*static_cast<Observer *>(context))(*progress);
        };
        how.observer.drop = [](void *context) noexcept { delete static_cast<Observer *>(context); };
        how.observer.context = kept.get();
    }
    hone_job *job = nullptr;
    check(start(how, &job));
    (void)kept.release(); // The library has it now.
    return Job(adopt, job);
}

} // namespace detail

/** Submits the pruning of a model; `how.observer` gives way to `observer`, if there is one. */
inline Job prune(const Model &model, const Samples &calibration, const hone_prune_options &how,
                 Observer observer = {}) {
    return detail::submit(how, std::move(observer),
                          [&](const hone_prune_options &options, hone_job **job) {
                              return hone_prune(model.c_handle(), calibration.c_handle(), &options,
                                                job);
                          });
}

/** Submits the training of a model on samples. */
inline Job finetune(const Model &model, const Samples &samples,
                    const hone_finetune_options &how = options<hone_finetune_options>(),
                    Observer observer = {}) {
    return detail::submit(how, std::move(observer),
                          [&](const hone_finetune_options &options, hone_job **job) {
                              return hone_finetune(model.c_handle(), samples.c_handle(), &options,
                                                   job);
                          });
}

/** Submits the evaluation of a model; `reference` may be null. */
inline Job evaluate(const Model &model, const Model *reference, const Samples &samples,
                    const hone_evaluate_options &how = options<hone_evaluate_options>(),
                    Observer observer = {}) {
    const hone_model *other = reference == nullptr ? nullptr : reference->c_handle();
    return detail::submit(how, std::move(observer),
                          [&](const hone_evaluate_options &options, hone_job **job) {
                              return hone_evaluate(model.c_handle(), other, samples.c_handle(),
                                                   &options, job);
                          });
}

/** Bounds of log u of each row, and their standard errors; see hone_scorer_bracket. */
struct Brackets {
    /** The mean of log p by the orders. */
    std::vector<double> lower;
    /** The bound from above. */
    std::vector<double> upper;
    /** Of the lower bounds; NaN for a single order. */
    std::vector<double> lower_error;
    /** Of the upper bounds. */
    std::vector<double> upper_error;
};

/** A marginalization model, ready to answer; rows are those of hone_scorer. */
class Scorer : public detail::Handle<hone_scorer, hone_scorer_free> {
public:
    using Handle::Handle;

    /** A scorer of a model in one file. */
    explicit Scorer(const Model &model,
                    const hone_scorer_options &how = options<hone_scorer_options>())
        : Handle(adopt, make(model, nullptr, how)) {}

    /** A scorer of a model whose halves are in two files. */
    Scorer(const Model &model, const Model &other,
           const hone_scorer_options &how = options<hone_scorer_options>())
        : Handle(adopt, make(model, other.c_handle(), how)) {}

    /** The number of sites of a row. */
    std::size_t length() const noexcept { return hone_scorer_length(c_handle()); }

    /** The number of values of the site that has most. */
    std::size_t vocab() const noexcept { return hone_scorer_vocab(c_handle()); }

    /** What the model is. */
    Report inspect() const {
        hone_report *made = nullptr;
        detail::check(hone_scorer_inspect(c_handle(), &made));
        return Report(adopt, made);
    }

    /** log p of the known sites of each row. */
    std::vector<double>
    score(const std::vector<std::int64_t> &rows,
          const hone_score_options &how = options<hone_score_options>()) const {
        std::vector<double> out(count(rows));
        detail::check(hone_scorer_score(c_handle(), rows.data(), out.size(), &how, out.data()));
        return out;
    }

    /** Bounds of how likely each row is, from both sides. */
    Brackets bracket(const std::vector<std::int64_t> &rows,
                     const hone_score_options &how = options<hone_score_options>()) const {
        const std::size_t n = count(rows);
        Brackets out{std::vector<double>(n), std::vector<double>(n), std::vector<double>(n),
                     std::vector<double>(n)};
        detail::check(hone_scorer_bracket(c_handle(), rows.data(), n, &how, out.lower.data(),
                                          out.upper.data(), out.lower_error.data(),
                                          out.upper_error.data()));
        return out;
    }

    /** How far the marginal half is from summing to one; see hone_normaliser. */
    hone_normaliser normaliser(
        const hone_normaliser_options &how = options<hone_normaliser_options>()) const {
        auto made = options<hone_normaliser>();
        detail::check(hone_scorer_normaliser(c_handle(), &how, &made));
        return made;
    }

    /** log p of the other known sites of each row given those where `given` is not 0. */
    std::vector<double>
    condition(const std::vector<std::int64_t> &rows, const std::vector<std::uint8_t> &given,
              const hone_score_options &how = options<hone_score_options>()) const {
        if (given.size() != rows.size()) {
            throw Error(HONE_CODE_INVALID_ARGUMENT, "given and rows differ in length");
        }
        std::vector<double> out(count(rows));
        detail::check(hone_scorer_condition(c_handle(), rows.data(), given.data(), out.size(), &how,
                                            out.data()));
        return out;
    }

    /** log p of each value of each site of each row, values running fastest. */
    std::vector<double>
    distributions(const std::vector<std::int64_t> &rows,
                  const hone_score_options &how = options<hone_score_options>()) const {
        const std::size_t n = count(rows);
        std::vector<double> out(n * length() * vocab());
        detail::check(hone_scorer_distributions(c_handle(), rows.data(), n, &how, out.data(),
                                                out.size()));
        return out;
    }

    /** Rows drawn from the model; `log_q`, if not null, takes how likely each was. */
    std::vector<std::int64_t>
    sample(std::size_t count, const hone_sample_options &how = options<hone_sample_options>(),
           std::vector<double> *log_q = nullptr) const {
        std::vector<std::int64_t> out(count * length());
        if (log_q != nullptr) log_q->resize(count);
        detail::check(hone_scorer_sample(c_handle(), count, &how, out.data(),
                                         log_q == nullptr ? nullptr : log_q->data()));
        return out;
    }

    /** Each row completed by `how.draws` draws; `log_q`, if not null, takes how likely each was. */
    std::vector<std::int64_t>
    impute(const std::vector<std::int64_t> &rows,
           const hone_sample_options &how = options<hone_sample_options>(),
           std::vector<double> *log_q = nullptr) const {
        const std::size_t draws = how.draws == 0 ? 1 : how.draws, n = count(rows);
        std::vector<std::int64_t> out(rows.size() * draws);
        if (log_q != nullptr) log_q->resize(n * draws);
        detail::check(hone_scorer_impute(c_handle(), rows.data(), n, &how, out.data(),
                                         log_q == nullptr ? nullptr : log_q->data()));
        return out;
    }

private:
    static hone_scorer *make(const Model &model, const hone_model *other,
                             const hone_scorer_options &how) {
        hone_scorer *made = nullptr;
        detail::check(hone_scorer_new(model.c_handle(), other, &how, &made));
        return made;
    }

    std::size_t count(const std::vector<std::int64_t> &rows) const {
        if (rows.size() % length() != 0) {
            throw Error(HONE_CODE_INVALID_ARGUMENT, "the values do not make whole rows");
        }
        return rows.size() / length();
    }

    friend Job check(const Scorer &, const std::vector<std::int64_t> &, const hone_check_options &,
                     Observer);
};

/** Submits a look at how far the halves of a model agree on rows. */
inline Job check(const Scorer &scorer, const std::vector<std::int64_t> &rows,
                 const hone_check_options &how = options<hone_check_options>(),
                 Observer observer = {}) {
    const std::size_t n = scorer.count(rows);
    return detail::submit(how, std::move(observer),
                          [&](const hone_check_options &options, hone_job **job) {
                              return hone_scorer_check(scorer.c_handle(), rows.data(), n, &options,
                                                       job);
                          });
}

/** Submits the training of a marginalization model on rows of `length` values. */
inline Job train_mam(const Engine &engine, const std::vector<std::int64_t> &rows,
                     std::size_t length,
                     const hone_mam_train_options &how = options<hone_mam_train_options>(),
                     Observer observer = {}) {
    if (length == 0 || rows.size() % length != 0) {
        throw Error(HONE_CODE_INVALID_ARGUMENT, "the values do not make whole rows");
    }
    return detail::submit(how, std::move(observer),
                          [&](const hone_mam_train_options &options, hone_job **job) {
                              return hone_mam_train(engine.c_handle(), rows.data(),
                                                    rows.size() / length, length, &options, job);
                          });
}

/** Submits the training of a marginalization model from the energy in `how`, without rows. */
inline Job train_mam(const Engine &engine, const hone_mam_train_options &how,
                     Observer observer = {}) {
    return detail::submit(how, std::move(observer),
                          [&](const hone_mam_train_options &options, hone_job **job) {
                              return hone_mam_train(engine.c_handle(), nullptr, 0, 0, &options,
                                                    job);
                          });
}

/** m gradients of d weights. */
class Gradients : public detail::Handle<hone_gradients, hone_gradients_free> {
public:
    using Handle::Handle;

    /** Room for `count` gradients of `dimension` weights. */
    Gradients(std::size_t count, std::size_t dimension,
              const hone_gradients_options &how = options<hone_gradients_options>())
        : Handle(adopt, make(count, dimension, how)) {}

    /** Copies the next gradient. */
    void push(const float *gradient, std::size_t len) {
        detail::check(hone_gradients_push(c_handle(), gradient, len));
    }

    /** Copies the next gradient. */
    void push(const std::vector<float> &gradient) { push(gradient.data(), gradient.size()); }

    /** How many have been pushed. */
    std::size_t count() const noexcept { return hone_gradients_count(c_handle()); }

private:
    static hone_gradients *make(std::size_t count, std::size_t dimension,
                                const hone_gradients_options &how) {
        hone_gradients *made = nullptr;
        detail::check(hone_gradients_new(count, dimension, &how, &made));
        return made;
    }
};

/** The inverse Fisher of gradients, never formed. */
class Fisher : public detail::Handle<hone_fisher, hone_fisher_free> {
public:
    using Handle::Handle;

    /** Prepares the inverse Fisher of gradients, all of which must be there. */
    explicit Fisher(const Gradients &gradients,
                    const hone_fisher_options &how = options<hone_fisher_options>())
        : Handle(adopt, make(gradients, how)) {}

    /** The number of weights. */
    std::size_t dimension() const noexcept { return hone_fisher_dimension(c_handle()); }

    /** λ. */
    double damping() const noexcept { return hone_fisher_damping(c_handle()); }

    /** The diagonal of F⁻¹. */
    std::vector<double> diagonal() const {
        std::vector<double> out(dimension());
        detail::check(hone_fisher_diagonal(c_handle(), out.data(), out.size()));
        return out;
    }

    /** F⁻¹x. */
    std::vector<float> apply(const std::vector<float> &x) const {
        std::vector<float> out(x.size());
        detail::check(hone_fisher_apply(c_handle(), x.data(), out.data(), x.size()));
        return out;
    }

    /** An element of F⁻¹. */
    double element(std::size_t row, std::size_t column) const {
        double out = 0;
        detail::check(hone_fisher_elements(c_handle(), &row, &column, &out, 1));
        return out;
    }

private:
    static hone_fisher *make(const Gradients &gradients, const hone_fisher_options &how) {
        hone_fisher *made = nullptr;
        detail::check(hone_fisher_new(gradients.c_handle(), &how, &made));
        return made;
    }
};

/** Prunes weights in place and returns the predicted rise of the loss; `mask` may be empty. */
inline double prune_weights(const Gradients &gradients, std::vector<float> &weights,
                            std::vector<std::uint8_t> *mask, const hone_layer *layers,
                            std::size_t layer_count, const hone_weights_options &how) {
    if (mask != nullptr && mask->size() != weights.size()) {
        throw Error(HONE_CODE_INVALID_ARGUMENT, "the mask and the weights differ in length");
    }
    double loss = 0;
    detail::check(hone_weights_prune(gradients.c_handle(), weights.data(),
                                     mask == nullptr ? nullptr : mask->data(), weights.size(),
                                     layers, layer_count, &how, &loss));
    return loss;
}

/** An optimizer with its state. */
class Optimizer : public detail::Handle<hone_optimizer, hone_optimizer_free> {
public:
    using Handle::Handle;

    /** An optimizer of `dimension` weights. */
    explicit Optimizer(std::size_t dimension,
                       const hone_optimizer_options &how = options<hone_optimizer_options>())
        : Handle(adopt, make(dimension, how)) {}

    /** One step of the weights along the gradient, in place. */
    void step(float *weights, const float *gradient, std::size_t len) {
        detail::check(hone_optimizer_step(c_handle(), weights, gradient, len));
    }

    /** One step of the weights along the gradient, in place. */
    void step(std::vector<float> &weights, const std::vector<float> &gradient) {
        if (weights.size() != gradient.size()) {
            throw Error(HONE_CODE_INVALID_ARGUMENT, "weights and gradient differ in length");
        }
        step(weights.data(), gradient.data(), weights.size());
    }

    /** The number of steps taken. */
    std::uint64_t steps() const noexcept { return hone_optimizer_steps(c_handle()); }

    /** Replaces the peak of the learning rate. */
    void set_learning_rate(double peak) {
        detail::check(hone_optimizer_set_learning_rate(c_handle(), peak));
    }

    /** Writes the state; the file appears whole or not at all. */
    void save(const std::string &path) const {
        detail::check(hone_optimizer_save(c_handle(), path.c_str()));
    }

    /** Takes over a saved state, or throws and leaves everything as it was. */
    void restore(const std::string &path) {
        detail::check(hone_optimizer_restore(c_handle(), path.c_str()));
    }

private:
    static hone_optimizer *make(std::size_t dimension, const hone_optimizer_options &how) {
        hone_optimizer *made = nullptr;
        detail::check(hone_optimizer_new(dimension, &how, &made));
        return made;
    }
};

/** Receives log lines, on any thread and from several at once. Must not call into hone. */
using LogSink = std::function<void(hone_log_level, const char *target, const char *message)>;

/** Sends log lines up to `level` to `sink`, or to nobody if it is empty. */
inline void set_log(hone_log_level level, LogSink sink) {
    if (!sink) return detail::check(hone_log_set(HONE_LOG_LEVEL_OFF, nullptr));
    auto kept = std::make_unique<LogSink>(std::move(sink));
    hone_log_sink raw{};
    raw.call = [](void *context, hone_log_level at, const char *target,
                  const char *message) noexcept {
        (*static_cast<LogSink *>(context))(at, target, message);
    };
    raw.drop = [](void *context) noexcept { delete static_cast<LogSink *>(context); };
    raw.context = kept.get();
    detail::check(hone_log_set(static_cast<std::uint32_t>(level), &raw));
    (void)kept.release(); // The library has it now.
}

/** The library's version, such as "0.1.0". */
inline std::string version() { return hone_version(); }

} // namespace hone

#endif
