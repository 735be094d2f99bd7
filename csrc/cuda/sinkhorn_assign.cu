#include "sinkhorn_assign.h"

#include "launch.cuh"

namespace mpamatch::cuda {
namespace {

// The workspace of a sum over blocks, its tickets set to 0 by a memset in the stream: a graph replays it too, and two
// streams never share a ticket.
template <class Real>
OrderedSum<Real> new_sum(int blocks, int count, void* result, bool maximum, const Place& place) {
    const OrderedSumSpace space = ordered_sum_space<Real>(blocks, count);
    unsigned char* workspace = place.allocate(space.total());
    check(cudaMemsetAsync(workspace, 0, static_cast<std::size_t>(space.tickets),
                          static_cast<cudaStream_t>(place.stream)),
          "cudaMemsetAsync");
    return ordered_sum_in(workspace, blocks, count, static_cast<Real*>(result), maximum);
}

template <class Storage, int vector>
void score(const ScoreArguments& a, const Place& place) {
    using Kernel = SinkhornScore<Storage, vector>;
    using Real = typename Kernel::Real;
    // 64 pixels keep half of a block's lane groups busy: fewer, larger slices would leave processors idle.
    const int blocks = blocks_for<Kernel>(divide_up(a.embedding.count, 64), place);
    const Kernel kernel{static_cast<const Storage*>(a.embedding.data),
                        a.embedding.stride,
                        static_cast<const Real*>(a.prototypes),
                        a.label,
                        a.embedding.count,
                        divide_up(a.embedding.count, blocks),
                        a.classes,
                        a.per_class,
                        a.embedding.width,
                        static_cast<Real>(1.0 / a.epsilon),
                        a.shifted,
                        static_cast<Real*>(a.score),
                        new_sum<Real>(blocks, a.classes * a.per_class, a.reduced, !a.shifted, place)};
    launch(kernel, blocks, "sinkhorn_score", place);
}

}  // namespace

void launch_score(const ScoreArguments& arguments, const Place& place) {
    const bool prototypes_aligned = reinterpret_cast<std::uintptr_t>(arguments.prototypes) % 16 == 0;
    with_storage(arguments.embedding.element, [&](auto storage) {
        using Storage = decltype(storage);
        // Four halves, not eight: the register file has no room for the products and eight elements of four pixels.
        constexpr int vector = full_vector<Storage> < 4 ? full_vector<Storage> : 4;
        if (prototypes_aligned && rows_are_aligned<Storage, vector>(arguments.embedding)) {
            score<Storage, vector>(arguments, place);
        } else {
            score<Storage, 1>(arguments, place);
        }
    });
}

void launch_step(const StepArguments& a, bool rows, void* new_log_u, void* new_total, const Place& place) {
    with_working(a.f64, [&](auto real) {
        using Real = decltype(real);
        using Kernel = SinkhornStep<Real>;
        const int blocks = blocks_for<Kernel>(divide_up(a.pixels, Kernel::threads), place);
        const Kernel kernel{static_cast<const Real*>(a.score),
                            a.label,
                            a.pixels,
                            divide_up(a.pixels, blocks),
                            a.classes,
                            a.per_class,
                            static_cast<const Real*>(a.log_u),
                            static_cast<const Real*>(a.total),
                            rows,
                            static_cast<Real*>(new_log_u),
                            new_sum<Real>(blocks, a.classes * a.per_class, new_total, false, place)};
        launch(kernel, blocks, "sinkhorn_step", place);
    });
}

void launch_pick(const StepArguments& a, std::int32_t* assignment, const Place& place) {
    with_working(a.f64, [&](auto real) {
        using Real = decltype(real);
        using Kernel = SinkhornPick<Real>;
        const Kernel kernel{static_cast<const Real*>(a.score), a.label,
                            a.pixels,  a.classes,
                            a.per_class,  static_cast<const Real*>(a.log_u),
                            static_cast<const Real*>(a.total), assignment};
        launch(kernel, blocks_for<Kernel>(divide_up(a.pixels, Kernel::threads), place), "sinkhorn_pick", place);
    });
}

}  // namespace mpamatch::cuda
