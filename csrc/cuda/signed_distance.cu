#include "signed_distance.h"

#include "launch.cuh"

namespace mpamatch::cuda {

void launch_distance(const DistanceArguments& a, const Place& place) {
    const Planes planes{a.classes, a.height, a.width};
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
