#include "cuda/prototype_update_.h"

#include "arguments/prototype_update_.h"
#include "cuda/launch.cuh"

namespace mpamatch::cuda {
namespace {

template <class Storage, int vector>
void sum(const PrototypeSumArguments& a, const Place& place) {
    using Kernel = PrototypeSum<Storage, vector>;
    using Real = typename Kernel::Real;
    const int width = static_cast<int>(a.embedding.width);
    const int prototypes = static_cast<int>(a.prototypes);
    const SumPlan plan =
        plan_sum<Storage, vector>(a.embedding.count, width, prototypes, Kernel::threads, device_of(place));
    require(plan.domains > 0, "prototypes: too many for the shared memory of this device.");
    constexpr std::int64_t real = sizeof(Real);
    constexpr std::int64_t integer = sizeof(int);
    const std::int64_t domains = plan.domains;
    Real* partial = reinterpret_cast<Real*>(place.allocate(domains * plan.rows * width * real));
    int* starts = reinterpret_cast<int*>(place.allocate(domains * (a.prototypes + 1) * integer));
    const Kernel kernel{static_cast<const Storage*>(a.embedding.data),
                        a.embedding.stride,
                        a.embedding.count,
                        width,
                        a.assignment,
                        static_cast<const Real*>(a.weight),
                        prototypes,
                        plan,
                        partial,
                        starts};
    launch(kernel, domains * blocks_per_domain, "prototype_sum, runs", place);
    const PrototypeAdd<Real> add{
        partial, starts, plan, prototypes, width, plan.domains < 512 ? plan.domains : 512, static_cast<Real*>(a.total)};
    require(add.blocks() < int_limit, "prototypes: too many for one launch.");
    launch(add, add.blocks(), "prototype_sum, total", place);
}

}  // namespace

void run_kernel(const PrototypeSumArguments& a, const Place& place) {
    require(a.embedding.width < int_limit, "embedding: expected fewer than 2^31 columns.");
    with_storage(a.embedding.element, [&](auto storage) {
        using Storage = decltype(storage);
        constexpr int vector = full_vector<Storage>;
        if (rows_are_aligned<Storage, vector>(a.embedding)) {
            sum<Storage, vector>(a, place);
        } else {
            sum<Storage, 1>(a, place);
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
