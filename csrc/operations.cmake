# The list of operations: each is named here and nowhere else on this side, README.md says what files it has.
# CMake makes the variables cpu_operations and cuda_operations from it.
macro(operation name)
    foreach(device ${ARGN})
        list(APPEND ${device}_operations ${name})
    endforeach()
endmacro()

operation(prototype_distance cpu)
operation(prototype_contrast cpu)
operation(sinkhorn_assign cpu cuda)
operation(prototype_update_ cpu cuda)
operation(segmentation_loss cpu)
operation(pseudo_label cpu)
operation(signed_distance cpu cuda)
