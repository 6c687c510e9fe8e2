// A second translation unit with the wrapper, so that what it defines twice would show.
#include <hone.hpp>

std::string version_of_the_other_unit();

std::string version_of_the_other_unit() {
    try {
        hone::Optimizer none(0);
    } catch (const hone::Error &error) {
        if (error.code() == HONE_CODE_INVALID_ARGUMENT) return hone::version();
    }
    return {};
}
