#include "cuda/signed_distance.h"

#include "arguments/signed_distance.h"
#include "cuda/launch.cuh"

namespace mpamatch::cuda {

void run_kernel(const SignedDistanceArguments& a, const Place& place) {
    const Planes planes{static_cast<int>(a.classes), static_cast<int>(a.height), static_cast<int>(a.width)};
    const std::int64_t count = a.batch * a.classes;
    if (count * a.height * a.width == 0) return;
    const std::int64_t bytes = count * a.height * a.width * static_cast<std::int64_t>(sizeof(std::int32_t));
    auto* square = reinterpret_cast<std::int32_t*>(place.allocate(bytes));
    const std::int64_t rows = a.batch * a.height;
    launch(DistanceRows{a.label, rows, planes, square}, blocks_for<DistanceRows>(rows, place), "signed_distance, rows",
           place);
    launch(DistanceColumns{planes, square, a.distance}, count * DistanceColumns::tiles(planes),
           "signed_distance, columns", place);
}

}  // namespace mpamatch::cuda
