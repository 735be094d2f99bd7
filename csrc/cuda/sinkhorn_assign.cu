#include "cuda/sinkhorn_assign.h"

#include "arguments/sinkhorn_assign.h"
#include "cuda/launch.cuh"

namespace mpamatch::cuda {
namespace {

// Memory for sums over blocks that follow one another in a stream. Their tickets are set to 0 by one memset there: a
// graph replays it too, and two streams never share a ticket.
class SumMemory {
  public:
    SumMemory(int sums, SumSpace largest, const Place& place) : largest_(largest) {
        const std::int64_t tickets = sums * largest.tickets;
        tickets_ = place.allocate(tickets + largest.partial + 2 * largest.bundle);
        rows_ = tickets_ + tickets;
        check(cudaMemsetAsync(tickets_, 0, static_cast<std::size_t>(tickets), static_cast<cudaStream_t>(place.stream)),
              "cudaMemsetAsync");
    }

    template <class Real>
    OrderedSum<Real> ordered(int blocks, int count, Real* result, bool maximum) {
        return ordered_sum_in(next(), rows_, blocks, count, result, maximum);
    }
    template <class Real>
    GridSum<Real> of_grid(int blocks, int count) {
        return grid_sum_in<Real>(next(), rows_, blocks, count);
    }

  private:
    unsigned char* next() {
        unsigned char* tickets = tickets_;
        tickets_ += largest_.tickets;
        return tickets;
    }

    SumSpace largest_;
    unsigned char* tickets_;
    unsigned char* rows_;
};

template <class Kernel, class Real>
SumMemory memory_for(int sums, int cells, const Place& place) {
    const int most = Kernel::blocks_per_processor * processors(place);
    return SumMemory(sums, SumSpace::of<Real>(most, cells), place);
}

template <class Storage, int vector, class Arguments>
ClassScores<Storage, vector> scores_of(const Arguments& a) {
    using Real = Working<Storage>;
    return {static_cast<const Storage*>(a.embedding.data),
            a.embedding.stride,
            static_cast<const Real*>(a.prototypes),
            static_cast<int>(a.classes),
            static_cast<int>(a.per_class),
            static_cast<int>(a.embedding.width),
            static_cast<Real>(1.0 / a.epsilon)};
}

template <class Storage, int vector>
void score(const SinkhornScoreArguments& a, SumMemory& memory, const Place& place) {
    using Kernel = SinkhornScore<Storage, vector>;
    using Real = typename Kernel::Real;
    // 64 pixels keep half of a block's lane groups busy: fewer, larger slices would leave processors idle.
    const int blocks = blocks_for<Kernel>(divide_up(a.embedding.count, 64), place);
    const int cells = static_cast<int>(a.classes * a.per_class);
    const Kernel kernel{scores_of<Storage, vector>(a),
                        a.label,
                        a.embedding.count,
                        divide_up(a.embedding.count, blocks),
                        a.shifted,
                        static_cast<Real*>(a.score),
                        memory.ordered(blocks, cells, static_cast<Real*>(a.reduced), !a.shifted)};
    launch(kernel, blocks, "sinkhorn_score", place);
}

template <class Real>
LogU<Real> log_u_of(const void* log_u, const void* total, Real sign = Real(1)) {
    return {static_cast<const Real*>(log_u), static_cast<const Real*>(total), sign};
}

template <class Real>
void step(const SinkhornStepArguments& a, const LogU<Real>& before, SumMemory& memory, const Place& place) {
    using Kernel = SinkhornStep<Real>;
    const int blocks = blocks_for<Kernel>(divide_up(a.count, Kernel::threads), place);
    const int cells = static_cast<int>(a.classes * a.per_class);
    const Kernel kernel{static_cast<const Real*>(a.score),
                        a.label,
                        a.count,
                        divide_up(a.count, blocks),
                        static_cast<int>(a.classes),
                        static_cast<int>(a.per_class),
                        before,
                        a.rows,
                        static_cast<Real*>(a.new_log_u),
                        memory.ordered(blocks, cells, static_cast<Real*>(a.new_total), false)};
    launch(kernel, blocks, "sinkhorn_step", place);
}

template <class Real>
void pick(const SinkhornPickArguments& a, const LogU<Real>& before, const Place& place) {
    using Kernel = SinkhornPick<Real>;
    const Kernel kernel{static_cast<const Real*>(a.score), a.label, a.count,     static_cast<int>(a.classes),
                        static_cast<int>(a.per_class),     before,  a.assignment};
    launch(kernel, blocks_for<Kernel>(divide_up(a.count, Kernel::threads), place), "sinkhorn_pick", place);
}

// One launch, where the scores fit into the shared memory of the blocks that run at once.
template <class Storage, int vector>
bool at_once(const SinkhornAssignArguments& a, const Place& place) {
    using Kernel = SinkhornAssign<Storage, vector>;
    using Real = typename Kernel::Real;
    const int classes = static_cast<int>(a.classes);
    const int per_class = static_cast<int>(a.per_class);
    const AssignPlan plan = plan_assign<Storage>(a.embedding.count, a.embedding.stride, classes, per_class,
                                                 Kernel::threads, device_of(place));
    if (plan.blocks == 0 || a.iterations > most_turns) return false;
    Kernel kernel{scores_of<Storage, vector>(a),  a.label,   a.embedding.count, plan.slice,
                  static_cast<int>(a.iterations), a.shifted, a.assignment,      {}};
    if (!runs_at_once(kernel, plan.blocks, "sinkhorn_assign", place)) return false;
    const int cells = classes * per_class;
    SumMemory memory(1, SumSpace::of<Real>(plan.blocks, cells), place);
    kernel.sum = memory.of_grid<Real>(plan.blocks, cells);
    launch_at_once(kernel, plan.blocks, "sinkhorn_assign", place);
    return true;
}

// A launch for the scores, for each iteration and for the choice.
template <class Storage, int vector>
void by_passes(const SinkhornAssignArguments& a, const Place& place) {
    using Real = Working<Storage>;
    constexpr std::int64_t real = sizeof(Real);
    const std::int64_t count = a.embedding.count;
    const std::int64_t cells = a.classes * a.per_class;
    Real* score_of = reinterpret_cast<Real*>(place.allocate(divide_up(count * a.per_class * real, 16) * 16));
    Real* state = reinterpret_cast<Real*>(place.allocate(4 * cells * real));
    const int sums = static_cast<int>(a.iterations + (a.shifted ? 0 : 1));
    // Each sum of SinkhornScore and SinkhornStep is over as many blocks at most.
    static_assert(SinkhornScore<Storage, vector>::blocks_per_processor == SinkhornStep<Real>::blocks_per_processor);
    SumMemory memory =
        memory_for<SinkhornScore<Storage, vector>, Real>(sums > 0 ? sums : 1, static_cast<int>(cells), place);

    Real* total = state;
    score<Storage, vector>(
        {a.embedding, a.prototypes, a.classes, a.per_class, a.label, a.epsilon, a.shifted, score_of, total}, memory,
        place);
    LogU<Real> now = log_u_of<Real>(nullptr, total);
    int other = 1;  // which half of the state is written next
    const auto pass = [&](bool rows) {
        Real* new_log_u = state + (2 * other + 1) * cells;
        Real* new_total = state + 2 * other * cells;
        step<Real>({score_of, a.embedding.element, count, a.classes, a.per_class, a.label, nullptr, nullptr, rows,
                    new_log_u, new_total},
                   now, memory, place);
        now = log_u_of<Real>(new_log_u, new_total);
        other = 1 - other;
    };
    if (a.iterations == 0) now = log_u_of<Real>(nullptr, nullptr);
    if (a.iterations > 0 && !a.shifted) {
        now = log_u_of<Real>(total, nullptr, Real(-1));
        pass(false);
    }
    for (std::int64_t i = 1; i < a.iterations; ++i) pass(true);
    pick<Real>({score_of, a.embedding.element, count, a.classes, a.per_class, a.label, nullptr, nullptr, a.assignment},
               now, place);
}

// Calls `use` with the storage and with how many of its elements are read at once.
template <class Arguments, class Use>
void with_vectors(const Arguments& a, const Use& use) {
    check_limits(a.embedding);
    require(a.classes <= most_classes, "prototypes: expected at most 255 classes.");
    require(a.classes * a.per_class * a.embedding.width < int_limit, "prototypes: expected fewer than 2^31 elements.");
    const bool prototypes_aligned = reinterpret_cast<std::uintptr_t>(a.prototypes) % 16 == 0;
    with_storage(a.embedding.element, [&](auto storage) {
        using Storage = decltype(storage);
        // Four halves, not eight: the register file has no room for the products and eight elements of four pixels.
        constexpr int vector = full_vector<Storage> < 4 ? full_vector<Storage> : 4;
        if (prototypes_aligned && rows_are_aligned<Storage, vector>(a.embedding)) {
            use(storage, std::integral_constant<int, vector>{});
        } else {
            use(storage, std::integral_constant<int, 1>{});
        }
    });
}

void check_scores(std::int64_t classes, std::int64_t per_class) {
    require(classes > 0 && classes <= most_classes, "log_u: expected 1 to 255 classes.");
    require(classes * per_class < int_limit, "score: expected fewer than 2^31 prototypes.");
}

}  // namespace

void run_kernel(const SinkhornAssignArguments& a, const Place& place) {
    with_vectors(a, [&](auto storage, auto vector) {
        using Storage = decltype(storage);
        if (!at_once<Storage, decltype(vector)::value>(a, place)) by_passes<Storage, decltype(vector)::value>(a, place);
    });
}

void run_kernel(const SinkhornScoreArguments& a, const Place& place) {
    with_vectors(a, [&](auto storage, auto vector) {
        using Kernel = SinkhornScore<decltype(storage), decltype(vector)::value>;
        SumMemory memory =
            memory_for<Kernel, typename Kernel::Real>(1, static_cast<int>(a.classes * a.per_class), place);
        score<decltype(storage), decltype(vector)::value>(a, memory, place);
    });
}

void run_kernel(const SinkhornStepArguments& a, const Place& place) {
    check_scores(a.classes, a.per_class);
    with_working(a.element, [&](auto real) {
        using Real = decltype(real);
        SumMemory memory = memory_for<SinkhornStep<Real>, Real>(1, static_cast<int>(a.classes * a.per_class), place);
        step(a, log_u_of<Real>(a.log_u, a.total), memory, place);
    });
}

void run_kernel(const SinkhornPickArguments& a, const Place& place) {
    check_scores(a.classes, a.per_class);
    with_working(a.element, [&](auto real) { pick(a, log_u_of<decltype(real)>(a.log_u, a.total), place); });
}

}  // namespace mpamatch::cuda
