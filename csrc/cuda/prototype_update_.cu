#include "cuda/prototype_update_.h"

#include "arguments/prototype_update_.h"
#include "cuda/launch.cuh"

namespace mpamatch::cuda {
namespace {

template <class Storage, int vector>
void sum(const PrototypeSumArguments& a, const SumPlan& plan, const Place& place) {
    using Real = Working<Storage>;
    const AssignedPixels<Storage> pixels{static_cast<const Storage*>(a.embedding.data),
                                         a.embedding.stride,
                                         a.embedding.count,
                                         static_cast<int>(a.embedding.width),
                                         a.assignment,
                                         static_cast<const Real*>(a.weight),
                                         static_cast<int>(a.prototypes)};
    constexpr std::int64_t real = sizeof(Real);
    Real* factor = nullptr;
    if (plan.chunks > 1) {
        using Kernel = PixelFactor<Storage, vector>;
        factor = reinterpret_cast<Real*>(place.allocate(a.embedding.count * real));
        const std::int64_t tiles = divide_up(a.embedding.count, Kernel::threads / lanes);
        launch(Kernel{pixels, factor}, blocks_for<Kernel>(tiles, place), "prototype_sum, lengths", place);
    }
    const std::int64_t cells = a.prototypes * a.embedding.width;
    Real* partial = reinterpret_cast<Real*>(place.allocate(plan.slices * cells * real));
    launch(PrototypeSum<Storage, vector>{pixels, plan, factor, partial}, std::int64_t(plan.slices) * plan.chunks,
           "prototype_sum, slices", place);
    launch(PrototypeAdd<Real>{partial, plan.slices, cells, static_cast<Real*>(a.total)}, divide_up(cells, warp_size),
           "prototype_sum, total", place);
}

}  // namespace

void run_kernel(const PrototypeSumArguments& a, const Place& place) {
    check_limits(a.embedding);
    const Device device = device_of(place);
    with_storage(a.embedding.element, [&](auto storage) {
        using Storage = decltype(storage);
        constexpr int vector = full_vector<Storage>;
        const SumPlan plan = plan_sum<Storage>(a.embedding.count, static_cast<int>(a.embedding.width),
                                               static_cast<int>(a.prototypes), update_threads, device);
        require(plan.columns > 0, "prototypes: too many for the shared memory of this device.");
        if (plan.columns % vector == 0 && rows_are_aligned<Storage, vector>(a.embedding)) {
            sum<Storage, vector>(a, plan, place);
        } else {
            sum<Storage, 1>(a, plan, place);
        }
    });
}

void run_kernel(const PrototypeMoveArguments& a, const Place& place) {
    require(a.count > 0 && a.count < int_limit && a.width < int_limit, "prototypes: expected 1 to 2^31.");
    with_working(a.element, [&](auto real) {
        using Real = decltype(real);
        const PrototypeMove<Real> kernel{static_cast<Real*>(a.prototypes), a.updates, static_cast<const Real*>(a.total),
                                         static_cast<int>(a.width), static_cast<Real>(a.momentum)};
        launch(kernel, a.count, "prototype_move_", place);
    });
}

}  // namespace mpamatch::cuda
