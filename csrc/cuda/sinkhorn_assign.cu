#include "cuda/sinkhorn_assign.h"

#include "arguments/sinkhorn_assign.h"
#include "cuda/launch.cuh"

namespace mpamatch::cuda {
namespace {

void check_scores(std::int64_t classes, std::int64_t per_class) {
    require(classes > 0 && classes <= most_classes, "log_u: expected 1 to 255 classes.");
    require(classes * per_class < int_limit, "score: expected fewer than 2^31 prototypes.");
}

// The workspace of a sum over blocks, its tickets set to 0 by a memset in the stream: a graph replays it too, and two
// streams never share a ticket.
template <class Real>
OrderedSum<Real> new_sum(int blocks, int count, void* result, bool maximum, const Place& place) {
    const OrderedSumSpace space = ordered_sum_space<Real>(blocks, count);
    unsigned char* workspace = place.allocate(space.total());
    check(
        cudaMemsetAsync(workspace, 0, static_cast<std::size_t>(space.tickets), static_cast<cudaStream_t>(place.stream)),
        "cudaMemsetAsync");
    return ordered_sum_in(workspace, blocks, count, static_cast<Real*>(result), maximum);
}

template <class Storage, int vector>
void score(const SinkhornScoreArguments& a, const Place& place) {
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
                        static_cast<int>(a.classes),
                        static_cast<int>(a.per_class),
                        static_cast<int>(a.embedding.width),
                        static_cast<Real>(1.0 / a.epsilon),
                        a.shifted,
                        static_cast<Real*>(a.score),
                        new_sum<Real>(blocks, static_cast<int>(a.classes * a.per_class), a.reduced, !a.shifted, place)};
    launch(kernel, blocks, "sinkhorn_score", place);
}

}  // namespace

void run_kernel(const SinkhornScoreArguments& a, const Place& place) {
    check_limits(a.embedding);
    require(a.classes <= most_classes, "prototypes: expected at most 255 classes.");
    require(a.classes * a.per_class * a.embedding.width < int_limit, "prototypes: expected fewer than 2^31 elements.");
    const bool prototypes_aligned = reinterpret_cast<std::uintptr_t>(a.prototypes) % 16 == 0;
    with_storage(a.embedding.element, [&](auto storage) {
        using Storage = decltype(storage);
        // Four halves, not eight: the register file has no room for the products and eight elements of four pixels.
        constexpr int vector = full_vector<Storage> < 4 ? full_vector<Storage> : 4;
        if (prototypes_aligned && rows_are_aligned<Storage, vector>(a.embedding)) {
            score<Storage, vector>(a, place);
        } else {
            score<Storage, 1>(a, place);
        }
    });
}

void run_kernel(const SinkhornStepArguments& a, const Place& place) {
    check_scores(a.classes, a.per_class);
    with_working(a.element, [&](auto real) {
        using Real = decltype(real);
        using Kernel = SinkhornStep<Real>;
        const int blocks = blocks_for<Kernel>(divide_up(a.count, Kernel::threads), place);
        const Kernel kernel{
            static_cast<const Real*>(a.score),
            a.label,
            a.count,
            divide_up(a.count, blocks),
            static_cast<int>(a.classes),
            static_cast<int>(a.per_class),
            static_cast<const Real*>(a.log_u),
            static_cast<const Real*>(a.total),
            a.rows,
            static_cast<Real*>(a.new_log_u),
            new_sum<Real>(blocks, static_cast<int>(a.classes * a.per_class), a.new_total, false, place)};
        launch(kernel, blocks, "sinkhorn_step", place);
    });
}

void run_kernel(const SinkhornPickArguments& a, const Place& place) {
    check_scores(a.classes, a.per_class);
    with_working(a.element, [&](auto real) {
        using Real = decltype(real);
        using Kernel = SinkhornPick<Real>;
        const Kernel kernel{static_cast<const Real*>(a.score),
                            a.label,
                            a.count,
                            static_cast<int>(a.classes),
                            static_cast<int>(a.per_class),
                            static_cast<const Real*>(a.log_u),
                            static_cast<const Real*>(a.total),
                            a.assignment};
        launch(kernel, blocks_for<Kernel>(divide_up(a.count, Kernel::threads), place), "sinkhorn_pick", place);
    });
}

}  // namespace mpamatch::cuda
